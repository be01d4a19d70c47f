"""What several models have in common, from the image onwards.

In: opened models of one class or of several.
Out: the steps that they share under one set of names, or the first difference.
Not here: nothing is merged.
"""
