"""Tracing: find the feature spaces of a model that no spec describes.

In: a model and one image.
Out: a trace, which names the unit at every index of every parameter axis, and a spec written from it.
Not here: choosing a spec, or changing a model.
"""
