"""Images, labels and targets.

In: a Hub id, a path, a data set or batches of pixels.
Out: preprocessed images, labels and targets, in batches that are divided among processes.
Not here: models.
"""
