"""Makes `import hf_zipit` enough for transformers' Auto classes to know merged models, without importing transformers.

transformers has no entry points for model types. The two modules that define the Auto classes are watched, and our
classes are registered as soon as one of them is loaded (at once if it already is).
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_AUTO = "transformers.models.auto.modeling_auto"


def install() -> None:
    """Register now if the Auto classes are loaded, else when they are."""
    if _AUTO in sys.modules:
        register()
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


def register() -> None:
    """Tell transformers about merged models; code files travel with every later `save_pretrained`."""
    import transformers

    from hf_zipit.models.configuration_zipit import ZipItConfig
    from hf_zipit.models.configuration_zipit_model import ZipItModelConfig
    from hf_zipit.models.modeling_zipit import ZipItForImageClassification
    from hf_zipit.models.modeling_zipit_model import ZipItModel

    pairs = ((ZipItConfig, ZipItForImageClassification), (ZipItModelConfig, ZipItModel))
    for config, model in pairs:
        transformers.AutoConfig.register(config.model_type, config, exist_ok=True)
        config.register_for_auto_class()
        model.register_for_auto_class(model.auto_classes[0])
        for name in model.auto_classes:
            getattr(transformers, name).register(config, model, exist_ok=True)


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds one module as usual and registers our classes once it has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader)
        return found


class _Loader(importlib.abc.Loader):
    def __init__(self, inner: importlib.abc.Loader) -> None:
        self.inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        register()
