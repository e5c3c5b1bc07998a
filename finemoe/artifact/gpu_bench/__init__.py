"""Measurements on a machine with a GPU, in resumable slices (`python -m finemoe.artifact.gpu_bench`, `make gpu`)."""
