"""The part of the network that several models have in common, from the image onwards.

In: opened models of one class or of several.
Out: the steps that they share, with common parameter names; or the first difference.
Not here: merging.
"""
