"""What only the figures, the tables and the claims of the paper need; the library never imports it."""
