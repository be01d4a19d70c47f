"""Merged models on disk and on the Hub.

In: a merged model, a place.
Out: a folder that is there whole or not at all: config, weights, spec, recipe, card; or an upload of it.
Not here: nothing about how the model was merged is decided.
"""
