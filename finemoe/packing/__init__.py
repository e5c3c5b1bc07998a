"""Formats of packed experts: one small file per format, which converts a checkpoint's tensors to a layer's weights."""
