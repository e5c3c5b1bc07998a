"""What is known of models before one runs: their MoE layers, their sizes, and the names of those that are shipped."""
