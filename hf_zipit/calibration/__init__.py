"""Calibration: repair a merged model on images, without labels or gradients.

In: a `MergeState`: the merged model on its device, its parents, plan and matches, and passes over the images.
Out: the same model, changed in place.
Not here: matching; it is already decided which units are merged.
"""
