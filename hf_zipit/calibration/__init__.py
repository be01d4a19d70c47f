"""Stages that repair a merged model on images, without labels or gradients.

In: a merged model on its device, its parents, plan and matches, passes over the images.
Out: the same model, changed in place.
Not here: no matching: which units were merged is settled.
"""
