"""Code for the paper's figures, tables and claims; the library never imports it."""
