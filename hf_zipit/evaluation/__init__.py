"""Evaluation of merged models.

In: a merged model, its parents, images with labels or targets.
Out: one row per model, with scores, FLOPs and parameters; and a description of a model's parts.
Not here: changes to a model.
"""
