"""Measurements of machines (finemoe.artifact.gpu_bench): their tables in `data/measured`, the figure and the pages about them."""
