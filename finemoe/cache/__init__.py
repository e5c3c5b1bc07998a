"""The expert cache and its eviction rules (section 4.5): accounting only, without weights, clock or threads."""
