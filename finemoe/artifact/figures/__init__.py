"""One module for each figure of the paper: what to draw, as a tidy table, and `draw`, a function of that table."""
