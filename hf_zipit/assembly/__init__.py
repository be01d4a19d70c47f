"""A merged model from its parts.

In: opened models, a plan, matches.
Out: the merged model before calibration, with the config that builds it again.
Not here: no forward pass over images.
"""
