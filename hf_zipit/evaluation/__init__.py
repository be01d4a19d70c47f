"""What a merged model is worth.

In: a merged model, its parents, labelled images.
Out: one row per model: scores, FLOPs, parameters; and what a model consists of.
Not here: no model is changed.
"""
