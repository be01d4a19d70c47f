"""Images and labels.

In: a Hub id, a path, a data set or batches of pixels.
Out: preprocessed images, labels and targets, in batches shared among processes.
Not here: no model is known.
"""
