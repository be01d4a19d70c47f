"""The files of a model folder, read without trust: no code in them runs, and no name in them leaves the folder."""

import argparse
import hashlib
import json
import math
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
from hf_zipit.sources.states import chosen_state
from hf_zipit.text import first_line, some

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.pt", "pytorch_model.pth", "model.pt", "model.pth", "model.ckpt")
MAX_CONFIG_BYTES = 64 * 2**20  # 20 000 classes with descriptions take 1 MiB
_NUMBERS = (".weight", ".bias")  # of layers: never integers
_FLOATS = ("F64", "F32", "F16", "BF16")
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
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        lacks = f"it has no {path.name}" if path.parent.exists() else "there is no such folder"
        models = sorted(found.parent.name for found in path.parent.glob(f"*/{path.name}"))
        hint = f"; models in it: {some(models)}" if models else ""
        raise SourceError(f"{path.parent} is not a model: {lacks}{hint}") from None
    except (ValueError, RecursionError, OSError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds a {type(value).__name__}, not a mapping")
    return value


def _finite(text: str) -> float:
    """The number that a text is; NaN and infinity are not allowed in JSON, though Python writes them."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


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
        "save_for_hf(..., safe_serialization=True), or allow them with allow_pickle=True or --allow-pickle (read with "
        "weights_only=True)"
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
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options that timm's training script keeps
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious file fails in many ways
        raise SourceError(f"{file} cannot be read as weights alone: {first_line(error)}") from None
    return chosen_state(content, file)


def file_digest(files: Sequence[Path]) -> str:
    """SHA-256 of a weight file; for several files, the SHA-256 of their digests in order."""
    parts = []
    for file in files:
        with file.open("rb") as stream:
            parts.append(hashlib.file_digest(stream, "sha256"))
    if len(parts) == 1:
        return parts[0].hexdigest()
    return hashlib.sha256(b"".join(part.digest() for part in parts)).hexdigest()


def headers(files: Sequence[Path]) -> dict[str, list[int]]:
    """The shape of every tensor in weight files, by name; of safetensors only the headers are read.

    Raises:
        SourceError: a file is damaged, or holds quantized weights.
    """
    shapes: dict[str, list[int]] = {}
    for file in files:
        if file.suffix != ".safetensors":
            shapes |= {name: list(value.shape) for name, value in _unpickled(file).items()}
            continue
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (no mapping)
                    part = opened.get_slice(name)
                    if name.endswith(_NUMBERS) and part.get_dtype() not in _FLOATS:
                        raise SourceError(
                            f"{file}: {name} holds numbers of type {part.get_dtype()}; quantized weights cannot be "
                            f"merged, so save the model in one of {', '.join(_FLOATS)}"
                        )
                    shapes[name] = part.get_shape()
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{file} is damaged: {error}") from None
    return shapes


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
    shapes = headers(files)
    tensors = len(shapes)
    numbers = sum(int(torch.Size(shape).numel()) for shape in shapes.values())
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
