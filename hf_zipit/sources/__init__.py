"""Models to merge, from any library. Besides `models`, only this folder imports model libraries.

In: a Hub id, a folder or a module.
Out: a `Source`: module, classes, preprocessing, origin.
Not here: comparisons between models.
"""
