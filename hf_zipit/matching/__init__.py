"""Which units of several models become one.

In: similarities of units, from statistics or weights.
Out: a `Match` for every feature space.
Not here: no model runs, and no weight is changed.
"""
