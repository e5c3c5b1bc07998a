"""External data: what data/external.yaml lists, fetched on request and never part of the project."""
