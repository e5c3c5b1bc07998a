"""How experts are packed: one small file for each format, between a checkpoint's tensors and the weights that a layer needs."""
