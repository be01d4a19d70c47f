"""Merge models trained on different tasks into one model, without training.

>>> import hf_zipit
>>> merged = hf_zipit.merge(["user/pets", "user/birds"], ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
"""

import importlib
from typing import Any

from hf_zipit import _register

__version__ = "0.1.0"

_PUBLIC = {
    "merge": "merging",
    "evaluate": "evaluation",
    "evaluate_tasks": "task_evaluation",
    "save": "saving",
    "push": "hub.push",
    "load_source": "sources",
    "module_source": "whole_models",
    "check_spec": "checks",
    "Match": "matching.match",
    "ZipItConfig": "configuration_zipit",
    "ZipItForImageClassification": "modeling_zipit",
    "ZipItModelConfig": "configuration_zipit_model",
    "ZipItModel": "modeling_zipit_model",
    "ZipItError": "errors",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `import hf_zipit` alone loads no library."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hf_zipit' has no attribute '{name}'")
    module = importlib.import_module(f"hf_zipit.{_PUBLIC[name]}")
    return getattr(module, {"load_source": "load"}.get(name, name))


_register.install()
