"""Refit of merged layers by ridge regression, in closed form.

In: the merged model and its parents, layer by layer.
Out: new weights for every layer whose output they bring closer to the parents'.
Not here: no labels, no gradients, no knowledge of architectures.
"""
