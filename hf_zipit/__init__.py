"""Merge models trained on different tasks into one model, without training.

>>> import hf_zipit
>>> merged = hf_zipit.merge(["user/pets", "user/birds"], ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
"""

import importlib
from typing import Any

from hf_zipit.models import auto as _auto

__version__ = "0.1.0"

_PUBLIC = {
    "merge": "merging.merge",
    "evaluate": "evaluation.classification",
    "evaluate_tasks": "evaluation.dense",
    "save": "saving.save",
    "push": "saving.push",
    "load_source": "sources.load",
    "module_source": "sources.whole_models",
    "check_spec": "checks",
    "Match": "transform.match",
    "ZipItConfig": "models.configuration_zipit",
    "ZipItForImageClassification": "models.modeling_zipit",
    "ZipItModelConfig": "models.configuration_zipit_model",
    "ZipItModel": "models.modeling_zipit_model",
    "ZipItError": "errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import hf_zipit` alone loads no library."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hf_zipit' has no attribute '{name}'")
    module = importlib.import_module(f"hf_zipit.{_PUBLIC[name]}")
    return getattr(module, {"load_source": "load"}.get(name, name))


_auto.install()
