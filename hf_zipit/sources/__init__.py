"""Models to merge, from whichever library. The one folder that imports model libraries.

In: a Hub id, a folder or a module.
Out: a `Source`: module, classes, preprocessing, origin.
Not here: what models have in common is no concern of this folder.
"""
