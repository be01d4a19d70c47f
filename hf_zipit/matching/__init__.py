"""Matching: statistics and weights of units -> which merged unit each of them becomes."""
