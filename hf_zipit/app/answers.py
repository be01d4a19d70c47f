"""What a merged model says of one image: the answer of every task, and the joint one."""

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from hf_zipit.models.modeling_zipit_model import DETECTION
from hf_zipit.saving.load import Merged
from hf_zipit.sources.preprocessing import preprocessing_of
from hf_zipit.sources.source import MODES

TOP = 5  # classes that are shown of a task
SURE = 0.5  # score of a box, below which it is not drawn


@dataclass(frozen=True)
class Answer:
    """What one task says of an image.

    Attributes:
        task: its name.
        scores: class -> score, the surest first; empty if the task does not classify the whole image.
        picture: the image with what was found in it; `None` if there is nothing to draw.
    """

    task: str
    scores: dict[str, float] = field(default_factory=dict)
    picture: Image.Image | None = None


@dataclass(frozen=True)
class Answers:
    """What all tasks say of an image.

    Attributes:
        tasks: one answer per task, in their order.
        joint: the class among those of all tasks, as `task: class`; `None` if there is no joint answer.
    """

    tasks: tuple[Answer, ...]
    joint: str | None


@torch.no_grad()
def answers(merged: Merged, image: Image.Image) -> Answers:
    """What a merged model says of an image, for all tasks in one pass.

    Args:
        merged: the model, as `saving.load.load_merged` returns it.
        image: of any size; it is preprocessed as the model states.

    Raises:
        DataError: the model does not state how images are prepared, or reads a number of channels that none has.

    >>> answers(load_merged("user/merged"), Image.open("bird.jpg")).joint  # doctest: +SKIP
    'birds: robin'
    """
    from hf_zipit.data.stored import check_transform

    size, transform = preprocessing_of(merged)
    prepare = check_transform(transform, size[0], "this image")
    image = image.convert(MODES[size[0]])
    output: Any = merged(pixel_values=prepare(image)[None], tasks=merged.config.tasks)
    heads = merged.config.heads or []
    if getattr(output, "task_logits", None) is None:
        return Answers(tuple(_seen(merged, head, output.task_outputs[head["task"]], image) for head in heads), None)
    found = [_classified(head, output.task_logits[head["task"]][0]) for head in heads]
    joint = None
    if len(heads) > 1 and not any(head.get("problem") for head in heads):
        classes = [f"{head['task']}: {name}" for head in heads for name in _names(head)]
        joint = classes[int(output.logits[0].argmax())]
    return Answers(tuple(found), joint)


def _names(head: Mapping[str, Any]) -> list[str]:
    """The names of the classes of a task, in the order of its outputs."""
    return [str(name) for _, name in sorted(head["id2label"].items(), key=lambda item: int(item[0]))]


def _classified(head: Mapping[str, Any], logits: Tensor) -> Answer:
    """The classes that a classifier finds likeliest; the values themselves, if it predicts values."""
    problem = head.get("problem")
    if problem == "regression":
        scores = logits
    elif problem == "binary":
        scores = torch.stack([1 - logits.sigmoid()[0], logits.sigmoid()[0]])
    else:
        scores = logits.sigmoid() if problem == "multi-label" else logits.softmax(-1)
    names = _names(head) if problem != "binary" else (["no", *_names(head)])[-2:]
    best = sorted(zip(scores.tolist(), names, strict=True), reverse=True)[:TOP]
    return Answer(head["task"], {name: score for score, name in best})


def _seen(merged: Any, head: Mapping[str, Any], output: Any, image: Image.Image) -> Answer:
    """The answer of a task of a merge of several kinds."""
    task, kind = head["task"], head.get("kind")
    if kind == "image-classification":
        return _classified(head, output.logits[0])
    if kind == DETECTION:
        return Answer(task, picture=_boxes(merged, task, image))
    if kind == "image-segmentation" and output.get("logits") is not None:
        return Answer(task, picture=_painted(output.logits[0], _names(head), image))
    depth = output.get("predicted_depth")
    return Answer(task, picture=None if depth is None else _map(depth[0], image))


def _boxes(merged: Any, task: str, image: Image.Image) -> Image.Image:
    """The image with the boxes of a detector."""
    drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    for number, found in enumerate(merged.detect(drawn.copy(), tasks=[task], threshold=SURE)[0]):
        box = [found["box"][key] for key in ("xmin", "ymin", "xmax", "ymax")]
        pen.rectangle(box, outline=_colour(number), width=2)
        pen.text((box[0] + 3, box[1] + 2), f"{found['label']} {found['score']:.2f}", fill=_colour(number))
    return drawn


def _painted(logits: Tensor, names: list[str], image: Image.Image) -> Image.Image:
    """The image under the colours of the classes of its pixels, with the names of the most frequent ones."""
    if len(logits) == 1:  # one class, which a pixel shows or not
        logits, names = torch.cat([torch.zeros_like(logits), logits]), ["rest", *names]
    classes = logits.argmax(0).to(torch.uint8)
    palette = [channel for number in range(len(names)) for channel in _colour(number)]
    mask = Image.fromarray(classes.numpy()).convert("P")
    mask.putpalette(palette)
    drawn = Image.blend(image.convert("RGB"), mask.resize(image.size, Image.Resampling.NEAREST).convert("RGB"), 0.6)
    pen = ImageDraw.Draw(drawn)
    counts = classes.flatten().int().bincount(minlength=len(names))
    for line, number in enumerate(counts.argsort(descending=True)[:TOP].tolist()):
        if counts[number]:
            pen.text((4, 3 + 12 * line), names[number], fill=_colour(number), stroke_width=2, stroke_fill=(0, 0, 0))
    return drawn


def _map(values: Tensor, image: Image.Image) -> Image.Image:
    """Values per pixel, the smallest black and the largest white."""
    values = values.squeeze()
    low, high = values.min(), values.max()
    grey = (255 * (values - low) / (high - low).clamp(min=1e-12)).to(torch.uint8)
    return Image.fromarray(grey.numpy()).resize(image.size)


def _colour(number: int) -> tuple[int, int, int]:
    """Colours that differ from each other, always the same for a number."""
    red, green, blue = colorsys.hsv_to_rgb((0.618 * number) % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
