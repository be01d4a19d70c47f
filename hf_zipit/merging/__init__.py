"""The pipeline from models and images to a merged model.

In: a recipe, opened models, images.
Out: a merged model in memory, with its provenance; or a plan with its costs.
Not here: writing to disk, or showing results.
"""
