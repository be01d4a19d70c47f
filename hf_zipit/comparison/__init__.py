"""Comparisons of many merges of the same models.

In: a `Merger` and the recipes to compare.
Out: one row per merge, beside its parents and their ensemble; a table, CSV, JSON and a picture.
Not here: merging itself; every merge is made by `merging`.
"""
