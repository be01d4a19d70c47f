"""Merged models as transformers runs them. Its files travel into merged repositories.

In: a config, or the parts of a merge.
Out: `ZipItForImageClassification`, `ZipItModel` and their configs.
Not here: nothing else of the package is imported: a merged repository has only these files.
"""
