"""Plans from a model's configuration: what it takes in memory, what fits on a machine, and how fast it will be."""
