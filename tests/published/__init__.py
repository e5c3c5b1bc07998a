"""Checkpoints of five published families at their real structure, and what `finemoe` makes of them."""
