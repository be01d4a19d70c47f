"""What a merge of some models can be worth, before one is made for good.

In: models, images. Out: their relation, what survives of each stage, and the agreement to expect of cuts and widths.
Not here: how a merge is made and judged (`merging`); how finished merges are compared on labels (`comparison`).
"""
