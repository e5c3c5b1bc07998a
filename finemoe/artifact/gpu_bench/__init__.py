"""What a machine with a GPU is asked to measure, in slices that resume (`python -m finemoe.artifact.gpu_bench`, `make gpu`)."""
