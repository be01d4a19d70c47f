"""Moments of the models' activations.

In: models, the probes of their spaces, batches of images.
Out: count, sum and products of every space and task, from memory or from disk.
Not here: nothing is compared or matched.
"""
