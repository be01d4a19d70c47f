"""The straight line from models and images to a merged model.

In: a recipe, opened models, images.
Out: a merged model in memory, with its provenance; or a plan of what it would cost.
Not here: nothing is written to disk, and no number is shown.
"""
