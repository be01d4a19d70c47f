"""Rules that merge models of one base by their differences to it, also called task vectors. No unit is matched.

In: for each model, its differences to the base by name; for RegMean also the models and their images.
Out: the merged difference by name.
Not here: loading the base, the scale of the difference, and building the merged model; that is `merging`.
"""
