"""Odd weight files: headers, offsets, types, names, shapes and values."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.fuzz import odd
from tests.fuzz.law import OUT, Case
from tests.fuzz.world import COUNT, World

State = dict[str, Tensor]
Told = tuple[str, bool | None]  # what was changed, and whether the command must succeed (None: either)
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
LARGE = (1e30, -1e30, 3e38, 1e15)
TYPES = ("float16", "bfloat16", "float64", "int64", "int8", "uint8", "bool", "complex64", "float8_e4m3fn")
PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "net.", "module._orig_mod.")


def _value(rng: Random, state: State) -> Told:
    name = rng.choice([k for k, v in state.items() if v.is_floating_point()])
    value, flat = rng.choice((*NOT_FINITE, *LARGE, 1e-45, 0.0, -1.0)), state[name].flatten()
    everywhere = rng.random() < 0.5
    flat[slice(None) if everywhere else rng.randrange(len(flat))] = value
    fails = False if value in NOT_FINITE or value != value else None
    return f"{name} holds {value} {'everywhere' if everywhere else 'in one place'}", fails


def _everything(rng: Random, state: State) -> Told:
    value = rng.choice((*NOT_FINITE, *LARGE, 0.0, 1e-45))
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.fill_(value)
    return f"all weights are {value}", False if value in NOT_FINITE or value != value else None


def _scale(rng: Random, state: State) -> Told:
    factor = rng.choice((1e4, 1e10, 1e20, 1e-10, 1e-40, -1.0))
    for name, tensor in state.items():
        if tensor.is_floating_point():
            state[name] = tensor * factor
    return f"all weights times {factor}", None


def _type(rng: Random, state: State) -> Told:
    kind, some = rng.choice(TYPES), rng.random() < 0.5
    chosen = [rng.choice(list(state))] if some else [k for k, v in state.items() if v.is_floating_point()]
    for name in chosen:
        state[name] = state[name].to(getattr(torch, kind))
    return f"{chosen[0] if some else 'all weights'} as {kind}", None


def _name(rng: Random, state: State) -> Told:
    name = rng.choice(list(state))
    state[f"{name}_"] = state.pop(name)
    return f"{name} renamed", False


def _prefix(rng: Random, state: State) -> Told:
    prefix, inner = rng.choice(PREFIXES), dict(state)
    state.clear()
    state.update({prefix + k: v for k, v in inner.items()})
    return f"all names begin with {prefix}", None


def _missing(rng: Random, state: State) -> Told:
    name = rng.choice(list(state))
    del state[name]
    return f"{name} missing", None if name.endswith("num_batches_tracked") else False


def _extra(rng: Random, state: State) -> Told:
    name = rng.choice(("foo", "layer9.weight", "optimizer.state", "embeddings.position_ids", ""))
    state[name] = torch.zeros(2)
    return f"{name!r} added", None


def _shape(rng: Random, state: State) -> Told:
    name = rng.choice([k for k, v in state.items() if v.ndim])
    value = state[name]
    changed = rng.choice(
        [value[:-1], torch.cat([value, value]), value[None], value.flatten()[:1], value[:0], value.flip(0)[..., None]]
    )
    state[name] = changed.contiguous()
    same = tuple(changed.shape) == tuple(value.shape)
    return f"{name} of shape {list(changed.shape)}, not {list(value.shape)}", None if same else False


def _none(rng: Random, state: State) -> Told:
    state.clear()
    return "no tensors", False


VALUES: tuple[Callable[[Random, State], Told], ...] = (
    *(_value, _value, _everything, _scale, _type, _name, _prefix, _missing, _extra, _shape, _none),
)


def _header(rng: Random, data: bytes) -> tuple[bytes, str]:
    """A change of the header alone: types, shapes, offsets, names, or its length."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    if rng.random() < 0.2:
        wrong = rng.choice((0, 1, size - 1, size + 1, size * 2, 2**31, 2**63, 2**64 - 1))
        return wrong.to_bytes(8, "little") + data[8:], f"a header of {wrong} bytes, not {size}"
    header, told = odd.changed(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :], f"header: {told}"


def spoil(rng: Random, folder: Path) -> Told:
    """Change the weights in a folder."""
    file = folder / "model.safetensors"
    how = rng.random()
    if how < 0.25:
        data, told = rng.choice((_header, _header, odd.broken))(rng, file.read_bytes())
        file.write_bytes(data)
        return told, None
    if how < 0.35:
        return _files(rng, folder)
    state = {name: value.clone() for name, value in load_file(file).items()}
    told, succeeds = rng.choice(VALUES)(rng, state)
    save_file(state, file, metadata={"format": "pt"})
    return told, succeeds


def _files(rng: Random, folder: Path) -> Told:
    """Other files than one file of weights."""
    file = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    state = load_file(file)
    shards = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(state)}
    file.unlink()
    how = rng.randrange(7)
    if how == 0:
        return "no weights", False
    if how == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return "pickled weights only", False
    if how == 2:
        file.mkdir()
        return "a folder called model.safetensors", False
    if how == 3:
        file.symlink_to("nowhere")
        return "a broken link called model.safetensors", False
    for shard in set(shards.values()):
        save_file({k: state[k] for k, v in shards.items() if v == shard}, folder / shard, metadata={"format": "pt"})
    about = {"metadata": {"total_size": 1}, "weight_map": shards}
    told, succeeds = "two shards", True
    if how == 4:
        about, told = odd.changed(rng, about)
        succeeds = None
    if how == 5:
        (folder / "model-2.safetensors").unlink()
        told, succeeds = "a shard is missing", False
    index.write_text(json.dumps(about), encoding="utf-8")
    return f"index: {told}", succeeds


def make(rng: Random, world: World, folder: Path) -> Case:
    """A command with a parent whose weights are odd."""
    name, (first, second) = world.family(rng)
    parent = Path(shutil.copytree(first, folder / "parent"))
    told, succeeds = spoil(rng, parent)
    command: list[str | Path] = ["merge", parent, second, "--data", world.data, "-o", OUT]
    if rng.random() < 0.3:
        command += ["--method", rng.choice(("average", "permute", "kmeans", "zip", "optimal"))]
    if rng.random() < 0.3:
        command += ["--calibrate", rng.choice(("none", "repair", "refit", "batchnorm"))]
    if rng.random() < 0.15:
        return Case(f"{name}: {told}", ["inspect", parent])
    return Case(f"{name}: {told}", command, images=COUNT if "--method" not in command else None, succeeds=succeeds)
