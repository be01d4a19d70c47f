"""Feature spaces of a model that no spec describes.

In: a model and one image.
Out: a trace of which places of which parameters are one unit, and a spec written from it.
Not here: no spec is chosen, and no model is changed.
"""
