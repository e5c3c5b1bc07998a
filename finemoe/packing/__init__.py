"""How experts are packed: one small file for each format, and how a layer's packed matrices become the weights it computes with."""
