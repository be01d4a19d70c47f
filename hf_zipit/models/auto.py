"""Makes `import hf_zipit` enough for transformers to load merged models, and for timm to build `cifar_*` architectures.

Neither library has entry points for models, and `import hf_zipit` must not import them. So the module of each library
that keeps its registry is watched: what we add is registered as soon as it has been loaded, or at once if it already
is.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

Register = Callable[[], None]


def install() -> None:
    """Register with every library that is loaded already, and watch for the others."""
    waiting = {name: register for name, register in _REGISTER.items() if name not in sys.modules}
    if waiting and not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher(waiting))
    for name, register in _REGISTER.items():
        if name not in waiting:
            importlib.import_module(name)  # waits if another thread is still loading it
            register()


def register_merges() -> None:
    """Register merged models with the Auto classes; every later `save_pretrained` writes their code files."""
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


def register_architectures() -> None:
    """Register `cifar_resnet20` and `cifar_vgg11` with timm; importing their modules does it."""
    importlib.import_module("hf_zipit.models.cifar_resnet")
    importlib.import_module("hf_zipit.models.cifar_vgg")


_REGISTER: dict[str, Register] = {  # to call once the module has been loaded
    "transformers.models.auto.modeling_auto": register_merges,
    "timm.models": register_architectures,
}


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds the watched modules as usual, and registers our classes when one of them has been executed."""

    def __init__(self, waiting: dict[str, Register]) -> None:
        self.waiting = waiting

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self.waiting:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is not None and found.loader is not None:
            found.loader = _Loader(found.loader, self)
        return found

    def loaded(self, name: str) -> None:
        """Register with a library whose watched module has been executed, and stop watching it."""
        register = self.waiting.pop(name, None)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)
        if register is not None:
            register()


class _Loader(importlib.abc.Loader):
    """Loads a module with its own loader, then tells the watcher."""

    def __init__(self, own: importlib.abc.Loader, watcher: _Watcher) -> None:
        self.own = own
        self.watcher = watcher

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.own  # what reads sources and resources asks the loader of the module
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        self.own.exec_module(module)
        self.watcher.loaded(module.__name__)
