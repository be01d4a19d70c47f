"""Least-squares refit of merged layers: closed form, no labels, no gradients."""
