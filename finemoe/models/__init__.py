"""What can be known about a model without running it: its MoE layers, its sizes, and the names of shipped models."""
