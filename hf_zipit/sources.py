"""Source models: Hub ids, local folders or loaded modules -> `Source`. The one module that knows model libraries."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hf_zipit import cifar_resnet as _cifar_resnet  # noqa: F401  (registers cifar_resnet20 with timm)
from hf_zipit import spec as specs
from hf_zipit.binding import bind
from hf_zipit.errors import SourceError, SpecError
from hf_zipit.spaces import Binding

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pth.tar")


@dataclass(frozen=True)
class Source:
    """A model to merge; the module is never changed.

    `backbone` rebuilds the architecture, `labels` are the class names in id order, `preprocessing` the settings behind
    `transform` (PIL image -> pixels) and `settings` their library's form; `origin` says where the model came from
    without naming a place on this machine.
    """

    name: str
    model: nn.Module
    backbone: dict[str, Any]
    labels: list[str]
    preprocessing: dict[str, Any]
    transform: Callable[[Any], Tensor] | None
    origin: dict[str, Any]
    settings: dict[str, Any]
    folder: Path | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of an input image."""
        channels, height, width = self.preprocessing["input_size"]
        return int(channels), int(height), int(width)


def load(source: str | Path | nn.Module | Source, model_args: dict[str, Any] | None = None) -> Source:
    """Load one model.

    Args:
        source: a Hub id (`user/name`, `user/name@revision`), a folder with `config.json` and `model.safetensors`, or
            a timm module made by `timm.create_model`. A `Source` is returned as it is.
        model_args: the keyword arguments a module was created with, apart from the number of classes; timm does not
            keep them, and a saved merge needs them.

    Raises:
        SourceError: it is no model, its weights are missing, damaged, pickled or do not fit, or its kind is unknown.
    """
    if isinstance(source, Source):
        return source
    if isinstance(source, nn.Module):
        return _from_module(source, model_args)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, {"id": None, "folder": path.resolve().name, "revision": None})
    if path.exists():
        raise SourceError(f"{source} is a file: a model is a folder with config.json and model.safetensors")
    if _HUB_ID.fullmatch(str(source)):
        return _from_hub(str(source))
    raise SourceError(f"no model at '{source}': it is neither a folder nor a Hub id (user/name)")


def untrained(architecture: str) -> Source:
    """A timm architecture by name with random weights, to inspect it or to check a spec with it.

    Raises:
        SourceError: timm has no such architecture.
    """
    if not timm.is_model(architecture):
        raise SourceError(f"'{architecture}' is neither a folder, a Hub id (user/name), nor a timm architecture")
    return _from_module(timm.create_model(architecture, pretrained=False), None)


def find_spec(source: Source, spec: str | Path | None = None) -> Binding:
    """Bind the family spec of a model, or the spec file given by the user.

    Raises:
        SpecError: no shipped spec is for this class, or the spec does not describe the model.
    """
    if spec is not None:
        return bind(specs.read(spec), source.model)
    classes = [f"{c.__module__}.{c.__qualname__}" for c in type(source.model).__mro__]
    known = specs.list_specs()
    for candidate in known:
        if specs.matches(candidate, classes):
            return bind(candidate, source.model)
    families = ", ".join(s.family for s in known)
    raise SpecError(f"{source.name}: no spec for {classes[0]}; families: {families}. Write one and pass it with --spec")


def preprocessing_of(pretrained_cfg: dict[str, Any]) -> tuple[tuple[int, int, int], Callable[[Any], Tensor]]:
    """The input size and the transform (PIL image -> pixels) that timm settings describe."""
    settings = timm.data.resolve_data_config(pretrained_cfg=pretrained_cfg)
    return tuple(settings["input_size"]), timm.data.create_transform(**settings, is_training=False)


def check_alike(sources: Sequence[Source], binding: Binding) -> None:
    """Refuse models that differ in anything but their classes, naming the first difference.

    Raises:
        SourceError: a parameter, a module or the preprocessing differs.
    """
    first = sources[0]
    for other in sources[1:]:
        pair = f"{first.name} and {other.name} cannot be merged"
        _same_parameters(first, other, binding, pair)
        _same_modules(first, other, binding, pair)
        for key in {**first.preprocessing, **other.preprocessing}:
            a, b = first.preprocessing.get(key), other.preprocessing.get(key)
            if a != b:
                raise SourceError(f"{pair}: their preprocessing differs in {key}: {a} and {b}")


def _same_parameters(first: Source, other: Source, binding: Binding, pair: str) -> None:
    a, b = first.model.state_dict(), other.model.state_dict()
    for name in [*a, *(n for n in b if n not in a)]:
        if name not in a or name not in b:
            lacks, has = (first, other) if name not in a else (other, first)
            raise SourceError(f"{pair}: {has.name} has a parameter {name}, {lacks.name} has none")
        if a[name].shape != b[name].shape and name not in binding.classifier:
            raise SourceError(f"{pair}: {name} has shape {list(a[name].shape)} and {list(b[name].shape)}")


def _same_modules(first: Source, other: Source, binding: Binding, pair: str) -> None:
    a, b = dict(first.model.named_modules()), dict(other.model.named_modules())
    classifiers = {name.rpartition(".")[0] for name in binding.classifier}
    for path in [*a, *(p for p in b if p not in a)]:
        shown = [f"{type(m[path]).__name__}({m[path].extra_repr()})" if path in m else "absent" for m in (a, b)]
        if shown[0] != shown[1] and path not in classifiers:
            raise SourceError(f"{pair}: the module {path or 'itself'} is {shown[0]} and {shown[1]}")


def _from_module(model: nn.Module, model_args: dict[str, Any] | None) -> Source:
    config = getattr(model, "pretrained_cfg", None)
    if not config or not config.get("architecture"):
        raise SourceError(
            f"a {type(model).__name__} that was not made by timm.create_model cannot be rebuilt later: "
            "save it as a Hub-format folder and pass that"
        )
    known = model_args if model_args is not None else getattr(model, "model_args", {})
    backbone = {"library": "timm", "architecture": config["architecture"], "model_args": known}
    origin = {"id": None, "folder": None, "revision": None, "sha256": None}
    return _timm_source(config["architecture"], model, backbone, config.get("label_names"), origin)


def _from_hub(ref: str) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = ref.partition("@")
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise SourceError(f"cannot get {ref} from the Hub, and there is no such folder: {first}") from error
    return _from_folder(folder, {"id": name, "folder": None, "revision": folder.name}, name.partition("/")[2])


def _from_folder(folder: Path, origin: dict[str, Any], name: str | None = None) -> Source:
    name = name or folder.resolve().name
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{folder} is no model: it has no config.json") from None
    except ValueError as error:
        raise SourceError(f"{folder}/config.json is not valid JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise SourceError(f"{folder}/config.json names no timm architecture (model_type: {kind})")
    args = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
    settings = {**config.get("pretrained_cfg", {}), "architecture": config["architecture"]}
    classes = config.get("num_classes", settings.get("num_classes", 1000))
    try:
        model = timm.create_model(
            config["architecture"], pretrained=False, num_classes=classes, pretrained_cfg=settings, **args
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise SourceError(f"{folder}: timm cannot build {config['architecture']}: {error}") from None
    weights = folder / "model.safetensors"
    _fill(model, _read_weights(weights), weights)
    backbone = {"library": "timm", "architecture": config["architecture"], "model_args": args}
    labels = config.get("label_names", settings.get("label_names"))
    origin = {**origin, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    return _timm_source(name, model, backbone, labels, origin, folder)


def _timm_source(
    name: str,
    model: nn.Module,
    backbone: dict[str, Any],
    labels: Any,
    origin: dict[str, Any],
    folder: Path | None = None,
) -> Source:
    known: Any = model  # timm's attributes are not typed
    settings = timm.data.resolve_model_data_config(model)
    preprocessing = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    names = list(labels.values()) if isinstance(labels, dict) else list(labels or [])
    names = names or [f"LABEL_{i}" for i in range(known.num_classes)]
    transform = timm.data.create_transform(**preprocessing, is_training=False)
    return Source(name, model, backbone, names, preprocessing, transform, origin, dict(known.pretrained_cfg), folder)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        pickles = sorted(p.name for pattern in _PICKLES for p in path.parent.glob(pattern))
        if pickles:
            raise SourceError(f"{path.parent} has only pickled weights ({pickles[0]}): save it as model.safetensors")
        raise SourceError(f"{path.parent} has no model.safetensors")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path} is damaged: {error}") from None


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    own = model.state_dict()
    problems = [f"{k} is missing" for k in own if k not in state]
    problems += [f"{k} is unexpected" for k in state if k not in own]
    problems += [
        f"{k} has shape {list(state[k].shape)}, not {list(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SourceError(f"{path} does not fit its config.json: {'; '.join(problems[:3])}{more}")
    model.load_state_dict(state)
