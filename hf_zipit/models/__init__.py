"""Model classes of merged models, for transformers. These files are copied into merged repositories.

In: a config, or the parts of a merge.
Out: `ZipItForImageClassification`, `ZipItModel` and their configs.
Not here: imports from the rest of the package, which a merged repository does not contain.
"""
