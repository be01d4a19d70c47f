"""Merged models on disk and on the Hub.

In: a merged model, and a folder or repository to write to or read from.
Out: a complete folder with config, weights, spec, recipe and card, its upload, or the model loaded from it.
Not here: decisions about the merge itself.
"""
