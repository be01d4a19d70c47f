"""Assembly of the merged model from its parts.

In: opened models, a plan, matches.
Out: the merged model before calibration, with the config that rebuilds it.
Not here: forward passes over images.
"""
