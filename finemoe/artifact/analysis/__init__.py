"""The analyses behind the figures: each takes traces and returns a tidy table; none draws a figure or imports torch."""
