"""Images, labels and targets.

In: a Hub id, a path, a data set or batches of pixels.
Out: preprocessed images, labels and targets, in batches that are divided among processes.
Not here: models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
