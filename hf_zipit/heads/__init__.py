"""Attention heads of all models kept in a merge, each with fewer units.

In: models, their binding, images, and the matches of the spaces around the heads.
Out: how a model is told its new number of heads, and a `HeadMatch` for every head space.
Not here: pairing heads one-to-one; `matching/groups.py` does that.
"""
