"""The files of a model folder, read without trust: no code in them runs, and no name in them leaves the folder."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from hf_zipit.errors import SourceError
from hf_zipit.text import first_line

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.pt", "pytorch_model.pth", "model.pt", "model.pth", "model.ckpt")
MAX_CONFIG_BYTES = 64 * 2**20  # 20 000 classes with descriptions take 1 MiB
SPARE_TENSORS = 10_000  # a model may create and replace so many tensors while it is built
SPARE_ELEMENTS = 50_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        SourceError: the file is missing, too large, or not a mapping in JSON.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise SourceError(f"{path} has {path.stat().st_size} bytes; a configuration has at most {MAX_CONFIG_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        lacks = f"it has no {path.name}" if path.parent.exists() else "there is no such folder"
        raise SourceError(f"{path.parent} is not a model: {lacks}") from None
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds a {type(value).__name__}, not a mapping")
    return value


def shards(index: Mapping[str, Any], path: Path) -> list[str]:
    """The names of the weight files that an index lists; all lie beside it.

    Raises:
        SourceError: it lists none, or one outside the folder.
    """
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise SourceError(f"{path} lists no weights")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise SourceError(f"{path} names {name!r} as a weight file; only safetensors files beside it are read")
    return sorted(set(names.values()))


def weight_files(folder: Path, allow_pickle: bool = False) -> list[Path]:
    """The files that hold a folder's weights.

    Raises:
        SourceError: there are none, one is missing, or they are pickled and that is not allowed.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        files = [folder / name for name in shards(read_json(folder / INDEX), folder / INDEX)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise SourceError(f"{folder} lacks {missing[0]}, which {INDEX} lists")
        return files
    pickled = [folder / name for name in PICKLES if (folder / name).is_file()]
    if not pickled:
        raise SourceError(f"{folder} has no {WEIGHTS}")
    if not allow_pickle:
        raise SourceError(only_pickled(folder, pickled[0].name))
    return pickled[:1]


def only_pickled(model: object, file: str) -> str:
    """The message for a model without safetensors."""
    return (
        f"{model} has only pickled weights ({file}); save it again with save_pretrained or timm's "
        "save_for_hf(..., safe_serialization=True), or allow them with --allow-pickle (read with weights_only=True)"
    )


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of weight files, by name.

    Raises:
        SourceError: a file is damaged, or a pickle holds more than tensors.
    """
    out: dict[str, Tensor] = {}
    for file in files:
        out |= _unpickled(file) if file.suffix != ".safetensors" else _tensors(file)
    return out


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{file} is damaged: {error}") from None


def _unpickled(file: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file fails in many ways
        raise SourceError(f"{file} cannot be read as weights alone: {first_line(error)}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SourceError(f"{file} holds more than named tensors; save its state dict as {WEIGHTS}")
    return {str(name): value.contiguous() for name, value in state.items()}


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into a model.

    Args:
        model: is changed in place.
        state: the tensors by name.
        path: the file they came from, for the message.

    Raises:
        SourceError: some are missing, unexpected, or of another shape.
    """
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


def file_digest(files: Sequence[Path]) -> str:
    """SHA-256 of a weight file; for several files, the SHA-256 of their digests in order."""
    parts = []
    for file in files:
        with file.open("rb") as stream:
            parts.append(hashlib.file_digest(stream, "sha256"))
    if len(parts) == 1:
        return parts[0].hexdigest()
    return hashlib.sha256(b"".join(part.digest() for part in parts)).hexdigest()


def elements(files: Sequence[Path]) -> tuple[int, int]:
    """The number of tensors, and of elements in all of them; of safetensors only the headers are read.

    Raises:
        SourceError: a file is damaged.
    """
    shapes: list[list[int]] = []
    for file in files:
        if file.suffix != ".safetensors":
            shapes += [list(value.shape) for value in _unpickled(file).values()]
            continue
        try:
            with safe_open(file, "pt") as opened:
                shapes += [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{file} is damaged: {error}") from None
    return len(shapes), sum(int(torch.Size(shape).numel()) for shape in shapes)


@contextmanager
def no_larger_than(files: Sequence[Path], config: Path) -> Iterator[None]:
    """Stop building a model as soon as it has far more parameters than its weight files hold.

    A config of a billion classes or layers is refused before it takes memory: each parameter is counted when it is
    registered, and parameters take no memory on the meta device, or before they are written to.

    Args:
        files: the weight files.
        config: the config.json that describes the model, for the message.

    Raises:
        SourceError: the model is much larger than its weights.
    """
    tensors, numbers = elements(files)
    seen: dict[int, Tensor] = {}
    count = 0
    thread = threading.get_ident()

    def check(_: nn.Module, __: str, value: Tensor | None) -> None:
        nonlocal count
        if value is None or id(value) in seen or threading.get_ident() != thread:
            return
        seen[id(value)] = value
        count += value.numel()
        if len(seen) > 4 * tensors + SPARE_TENSORS or count > 4 * numbers + SPARE_ELEMENTS:
            raise SourceError(
                f"{config} describes a model of more than {count} parameters, but its weights hold {numbers}; "
                "config.json is damaged or belongs to other weights"
            )

    hooks = [register_module_parameter_registration_hook(check), register_module_buffer_registration_hook(check)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
