"""Specs, which map slices of parameters to feature spaces.

In: a YAML file and a live model.
Out: a `Binding`: spaces, table, steps and cuts.
Not here: weights; only shapes are read.
"""
