"""The simulated executor: recorded routing drives a policy and a cache without a model (DESIGN 6)."""
