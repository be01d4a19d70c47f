"""Moments of activations.

In: models, the probes of their spaces, batches of images.
Out: count, mean and second moment for every space and task, newly computed or read from the cache.
Not here: comparing or matching units.
"""
