"""Merge models trained on different tasks into one model, without training.

Public names are listed in `__init__.pyi` and imported on first use, so `import hf_zipit` alone loads no other
library.

>>> import hf_zipit
>>> merged = hf_zipit.merge(["user/pets", "user/birds"], ["user/pets-data", "user/birds-data"])  # doctest: +SKIP

In: Hub ids, folders, modules, images.
Out: a merged model, in memory or as a repository.
Not here: code; every name is defined in one of the subpackages.
"""

import lazy_loader

from hf_zipit.models import auto

__version__ = "0.2.0.dev0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]

auto.install()
