"""The live executor: moves real weights for any Transformers MoE model (DESIGN 5)."""
