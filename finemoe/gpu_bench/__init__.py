"""What a machine with a GPU is asked to measure, in slices that resume (`python -m finemoe.gpu_bench`, `make gpu`)."""
