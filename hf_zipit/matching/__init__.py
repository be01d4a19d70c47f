"""Matching: decide which units of the models are merged with each other.

>>> from hf_zipit.matching import zip_match, select_match, permute_match, average_match, Match

In: similarities of units, from activation statistics or from weights.
Out: a `Match`, or a `DenseMatch`, for every feature space.
Not here: running models or changing weights.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
