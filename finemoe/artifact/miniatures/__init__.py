"""The three miniatures the project ships: real Transformers classes, the paper's L x J / K, a small hidden size (DESIGN 7.1)."""
