"""The analyses behind the figures: each takes traces and returns a tidy table; none draws, none imports torch."""
