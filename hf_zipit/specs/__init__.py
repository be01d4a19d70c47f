"""Which slice of which parameter belongs to which feature space.

In: a YAML file and a live model.
Out: a `Binding`: spaces, table, steps and cuts.
Not here: no weights are read, only shapes.
"""
