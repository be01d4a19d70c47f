"""Tensors by name, as training leaves them in files, and the models that they are for."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.errors import SourceError
from hf_zipit.text import some

COMPILERS = ("_orig_mod.", "module.")  # torch.compile; DataParallel and DistributedDataParallel
OWNERS = ("model.", "net.")  # attributes of a LightningModule
NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")  # the first one is taken, as timm does
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_log = logging.getLogger("hf_zipit")


def chosen_state(content: Any, file: Path) -> dict[str, Tensor]:
    """The tensors by name in what a trainer saved: a state dict, or a checkpoint that holds one or several.

    Raises:
        SourceError: there is no state dict in it.
    """
    held = [key for key in NESTED if isinstance(content, dict) and isinstance(content.get(key), dict)]
    state = content[held[0]] if held else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        where = f"{file}: {held[0]}" if held else str(file)
        raise SourceError(f"{where} holds more than named tensors; save its state dict as model.safetensors")
    if len(held) > 1:
        _log.warning("%s holds several states (%s): %s is read, as timm does", file, ", ".join(held), held[0])
    elif held:
        _log.info("%s: the weights under %s are read", file, held[0])
    return {str(name): value.contiguous() for name, value in state.items()}


def left_prefix(names: Iterable[str], prefixes: Iterable[str], own: Iterable[str] = ()) -> str:
    """The prefix that wrappers left before every name, in any order; `""` if there is none.

    Args:
        names: the names in a file.
        prefixes: what the wrappers put before a name.
        own: the names in the model; a prefix that they begin with belongs to the model.

    >>> left_prefix(["_orig_mod.module.fc.weight", "_orig_mod.module.fc.bias"], COMPILERS)
    '_orig_mod.module.'
    """
    every = list(names)
    mine = tuple(own)
    prefix = ""
    while every:
        found = next((p for p in prefixes if all(name.startswith(prefix + p) for name in every)), None)
        if found is None or any(name.startswith(found) for name in mine):
            break
        prefix += found
    return prefix


def unwrapped(state: Mapping[str, Tensor], model: nn.Module, file: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors without the prefix that wrappers left before every name, and that prefix."""
    prefix = left_prefix(state, COMPILERS + OWNERS, model.state_dict())
    if prefix:
        _log.info("%s: the prefix %s is removed from its names", file, prefix)
    return {name.removeprefix(prefix): value for name, value in state.items()}, prefix


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, prefix: str = "") -> None:
    """Load weights into a model. A file may lack what torch can do without: `num_batches_tracked`.

    Args:
        model: is changed in place.
        state: the tensors by name.
        path: the file they came from, for the message.
        prefix: what was removed from the names in the file, for the message.

    Raises:
        SourceError: some are missing, unexpected, of another shape, or no floating-point numbers.
    """
    own = model.state_dict()
    wrong = {}
    for name, value in state.items():
        if name in own and value.shape != own[name].shape:
            wrong[name] = f"{name} has shape {list(value.shape)}, not {list(own[name].shape)}"
        elif name in own and own[name].is_floating_point() and value.dtype not in FLOATS:
            wrong[name] = f"{name} holds {value.dtype}, not floating-point numbers"
    found = model.load_state_dict({k: v for k, v in state.items() if k not in wrong}, strict=False)
    problems = [f"{name} is missing" for name in found.missing_keys if name not in wrong]
    problems += [f"{name} is unexpected" for name in found.unexpected_keys]
    problems += wrong.values()
    after = f" without the prefix {prefix} of its names" if prefix else ""
    _refuse(problems, f"{path}{after}")


def check_loaded(model: nn.Module, info: Mapping[str, Any], file: Path) -> None:
    """Refuse a model some of whose weights are random, or that leaves out what its file holds for its layers.

    transformers loads both with a warning. Tensors of parts that the model does not have, such as the pooler or the
    decoder of the class it was trained with, are left out as transformers does.

    Raises:
        SourceError: the message names the tensors.
    """
    missing = sorted(key for key in info.get("missing_keys", ()) if not key.endswith("num_batches_tracked"))
    unexpected = sorted(info.get("unexpected_keys", ()))
    dropped = [key for key in unexpected if _is_inside(key, model)]
    problems = [f"{key} is missing" for key in missing] + [f"{key} is unexpected" for key in dropped]
    problems += sorted(str(key) for name in ("mismatched_keys", "error_msgs") for key in info.get(name, ()))
    _refuse(problems, file)
    if unexpected:
        _log.warning(
            "%s: a %s has no place for %s, and leaves it out", file, type(model).__name__, some(unexpected, most=3)
        )


def _refuse(problems: Sequence[str], file: object) -> None:
    """Refuse weights with problems.

    Raises:
        SourceError: the message holds the first problems.
    """
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise SourceError(f"{file} does not fit its config.json: {'; '.join(problems[:3])}{more}")


def _is_inside(key: str, model: nn.Module) -> bool:
    """Whether a tensor that a model does not have belongs to one of its layers, or to another layer beside them."""
    modules = dict(model.named_modules())
    parts = key.split(".")
    above = [".".join(parts[:depth]) for depth in range(1, len(parts))]
    if any(path in modules and parts[depth].isdigit() for depth, path in enumerate(above, 1)):
        return True
    owner = modules.get(above[-1]) if above else None
    return owner is not None and bool(owner._parameters) and not owner._modules


def check_finite(model: nn.Module, name: object) -> None:
    """Refuse weights that are no numbers, which every merge would spread to all its tasks.

    Raises:
        SourceError: a tensor holds NaN or infinity, or is on the meta device.
    """
    for key, value in model.state_dict().items():
        if value.is_meta:
            raise SourceError(f"{name} has no weights: {key} is on the meta device")
        if not value.is_floating_point():
            continue
        bad = value.numel() - int(value.isfinite().sum())
        if bad:
            raise SourceError(
                f"{name}: {bad} of the {value.numel()} numbers in {key} are not finite; its training diverged or its "
                "file is damaged, so use an earlier checkpoint"
            )
