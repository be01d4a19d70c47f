"""Tracing: the feature spaces and legal cuts of any model, from one forward pass."""
