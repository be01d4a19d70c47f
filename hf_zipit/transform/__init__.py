"""The transform from matches to merged weights.

In: state dicts, a binding, matches.
Out: merged state dicts, computed by gathers and segment means, or by the matrices of dense matches.
Not here: running models or matching units.
"""
