"""Many merges of the same models, side by side.

In: a `Merger` and the recipes to compare.
Out: one row per merge, beside its parents and their ensemble; a table, CSV, JSON and a picture.
Not here: no merge is made in another way than `merging` makes it.
"""
