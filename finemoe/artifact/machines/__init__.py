"""What machines measured (finemoe.artifact.gpu_bench): their tables in `data/measured`, the figure of them and the pages."""
