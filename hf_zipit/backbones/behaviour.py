"""Whether two models compute the same in eval mode: their settings side by side, and their outputs where these differ.

Some settings only matter in training: dropout, stochastic depth, `problem_type`, the momentum of batch norms. No list
says which: whatever differs, both models are run with equal weights.
"""

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hf_zipit.models.modeling_zipit import resize
from hf_zipit.running import logits_of
from hf_zipit.sources.pixels import noise
from hf_zipit.sources.source import MODES, Source
from hf_zipit.transform.permute import TOLERANCE, randomise

# what only training reads; it is named last in messages, and not held against models without weights
_TRAINING = re.compile(
    r"drop|dtype|problem_type|initializer|init_|use_cache|output_|return_dict|checkpointing|momentum"
)
_PLAIN = (bool, int, float, str, tuple)


def differences(first: Source, other: Source, classifier: Collection[str]) -> list[str]:
    """What is set differently in two models, as phrases for messages; the likeliest cause comes first.

    Args:
        first: A model.
        other: A model of the same class.
        classifier: The parameters whose modules differ in the number of classes.
    """
    found = [
        f"their configuration differs in {key}: {ours} and {theirs}"
        for where in ("config", "model_args")
        for key, ours, theirs in _unequal(first.backbone.get(where), other.backbone.get(where))
    ]
    classifiers = {name.rpartition(".")[0] for name in classifier}
    a = dict(first.model.named_modules())
    b = dict(other.model.named_modules())
    for path in [*a, *(p for p in b if p not in a)]:
        if path not in classifiers:
            found += _module_differences(path, a.get(path), b.get(path))
    return sorted(found, key=lambda text: bool(_TRAINING.search(text)))


def matter(differences: list[str]) -> list[str]:
    """The differences that are not known to be read in training alone."""
    return [text for text in differences if not _TRAINING.search(text)]


def _unequal(a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = (value if isinstance(value, Mapping) else {} for value in (a, b))
    for key in {**ours, **theirs}:
        if _listed(ours.get(key)) != _listed(theirs.get(key)):
            yield key, ours.get(key), theirs.get(key)


def _listed(value: Any) -> Any:
    """A value in which a tuple is a list, as after a way through JSON."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _module_differences(path: str, a: nn.Module | None, b: nn.Module | None) -> list[str]:
    shown = [_shown(module) for module in (a, b)]
    if shown[0] == shown[1] == "nothing":
        return []
    place = f"module {path}" if path else "model"
    if shown[0] != shown[1]:
        return [f"the {place} is {shown[0]} and {shown[1]}"]
    settings = [
        {k: v for k, v in vars(m).items() if k[0] != "_" and isinstance(v, _PLAIN)} for m in (a, b) if m is not None
    ]
    changed = (item for item in _unequal(*settings) if item[0] not in ("training", "num_classes", "num_labels"))
    return [f"the {place} has {key} {ours} and {theirs}" for key, ours, theirs in changed]


def _shown(module: nn.Module | None) -> str:
    """A module as messages name it; "nothing" if it returns its input in eval mode, as dropout does."""
    if module is None or _is_inert(module):
        return "nothing"
    return f"{type(module).__name__}({module.extra_repr()})"


@torch.no_grad()
def _is_inert(module: nn.Module) -> bool:
    """Whether a module without weights and parts returns whatever it gets, in eval mode."""
    if module._modules or module._parameters or module._buffers:
        return False
    value = torch.randn(2, 8, 8, 8, device="cpu")
    try:
        out = copy.copy(module).eval()(value.clone())  # some work in place
    except Exception:  # it needs another input, so it does something with it
        return False
    return isinstance(out, Tensor) and torch.equal(out, value)


@torch.no_grad()
def same_outputs(first: Source, other: Source) -> bool:
    """Whether two models give the same logits of an image of noise, in eval mode and with equal random weights.

    Args:
        first: a model; it may be on the meta device.
        other: a model with parameters of the same names; a copy of it takes the shapes of the first.
    """
    pixels = torch.randn(1, *first.input_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    try:
        a = randomise(_on_cpu(first.model), seed=0)
        state = a.state_dict()
        expected = logits_of(a(pixels))
        b = as_wide(_on_cpu(other.model), state)
        b.load_state_dict(state)
        out = logits_of(b(pixels))
    except Exception:  # settings that do not go with the image or the weights of the other model
        return False
    scale = max(1.0, float(expected.abs().max()))
    return out.shape == expected.shape and float((out - expected).abs().max()) <= TOLERANCE * scale


def as_wide(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The model itself, whose layers get the widths that tensors of the same names have."""
    for name, value in model.state_dict().items():
        if value.shape != state[name].shape:
            resize(model, name, list(state[name].shape))
    return model


def _on_cpu(model: nn.Module) -> nn.Module:
    """A copy in eval mode and double precision. What a model on the meta device lacks is zero."""
    net = copy.deepcopy(model)
    if any(value.is_meta for value in net.state_dict().values()):
        net = net.to_empty(device="cpu")
        for value in (*net.parameters(), *net.buffers()):
            value.zero_()
    return net.cpu().double().eval()


def same_values(first: Source, other: Source) -> bool:
    """Whether the preprocessing of two models makes the same values of a colour, wherever it cuts the image."""
    channels = first.input_size[0]
    if first.transform is None or other.transform is None or channels not in MODES:
        return True
    for value in (0, 100, 255):
        colour = value if channels == 1 else (value, 255 - value, 128, 255)[:channels]
        image = Image.new(MODES[channels], (64, 64), colour)
        try:
            a, b = (torch.as_tensor(transform(image)) for transform in (first.transform, other.transform))
        except Exception:  # which is reported when an image is read
            return True
        mine, its = (pixels[:, pixels.shape[1] // 2, pixels.shape[2] // 2].double() for pixels in (a, b))
        if not torch.allclose(mine, its, rtol=0, atol=0.01):
            return False
    return True


def same_pixels(first: Source, other: Source) -> bool:
    """Whether the preprocessing of two models makes the same pixels of a large image and of a small one."""
    channels = first.input_size[0]
    if first.transform is None or other.transform is None or channels not in MODES:
        return False
    for height, width in ((300, 401), (31, 20)):
        image = noise(channels, height, width)
        try:
            a, b = (torch.as_tensor(transform(image)) for transform in (first.transform, other.transform))
        except Exception:  # settings that do not fit the images; they are compared one by one
            return False
        if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=1e-6):
            return False
    return True


def same_boxes(first: Source, other: Source) -> bool:
    """Whether the image processors of two detectors make the same boxes of the same outputs; unknown ones do."""
    if None in (first.processor, other.processor):
        return True
    generator = torch.Generator().manual_seed(0)
    logits, boxes = (torch.randn(1, 8, size, generator=generator) for size in (5, 4))
    output = SimpleNamespace(logits=logits, pred_boxes=boxes.sigmoid())
    size = torch.tensor([[60, 80]])
    try:
        a, b = (
            source.processor.post_process_object_detection(output, threshold=0.1, target_sizes=size)[0]
            for source in (first, other)
        )
    except Exception:  # they read other outputs
        return False
    return all(a[key].shape == b[key].shape and torch.allclose(a[key], b[key]) for key in ("scores", "labels", "boxes"))
