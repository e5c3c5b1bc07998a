"""Figures and pages of advice: the figures, the self-contained page, the notebook's comparison and the gallery of real traces."""
