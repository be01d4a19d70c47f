"""From matches to weights.

In: state dicts, a binding, matches.
Out: merged state dicts: pure gathers and segment means.
Not here: no model runs.
"""
