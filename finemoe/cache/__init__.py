"""The expert cache and the rules by which it evicts (section 4.5): accounting only, no weights, no clock, no thread."""
