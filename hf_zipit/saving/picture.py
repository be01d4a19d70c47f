"""A picture of a merge for its model card: what its tasks share, and what each has of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hf_zipit.costs import count_parameters
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.text import si

PICTURE = "structure.png"
MOST = 8  # tasks in the picture; the others are counted
_WHITE, _INK, _SHARED, _OWN = "#ffffff", "#1f2933", "#bfdbfe", "#fed7aa"
_SCALE = 2  # pixels per point, for sharp text
_WIDTH, _ROW, _GAP, _MARGIN = 760, 54, 12, 20  # in points


def draw_structure(model: ZipItPreTrainedModel, file: Path) -> None:
    """Write the picture as PNG.

    Args:
        model: the merged model.
        file: the file to write.
    """
    tasks = _tasks(model)
    height = 2 * _MARGIN + len(tasks) * (_ROW + _GAP) - _GAP
    image = Image.new("RGB", (_WIDTH * _SCALE, height * _SCALE), _WHITE)
    draw = ImageDraw.Draw(image)
    middle = height / 2
    left, shared, own = 70, (150, 410), (500, 740)
    _write(draw, (left, middle), ["image"], 16)
    _arrow(draw, (left + 30, middle), (shared[0], middle))
    _box(draw, (shared[0], _MARGIN, shared[1], height - _MARGIN), _SHARED)
    _write(draw, (sum(shared) / 2, middle), _shared_text(model), 15)
    for number, lines in enumerate(tasks):
        top = _MARGIN + number * (_ROW + _GAP)
        _arrow(draw, (shared[1], top + _ROW / 2), (own[0], top + _ROW / 2))
        _box(draw, (own[0], top, own[1], top + _ROW), _OWN)
        _write(draw, (sum(own) / 2, top + _ROW / 2), lines, 14)
    image.save(file, optimize=True)


def _shared_text(model: ZipItPreTrainedModel) -> list[str]:
    """What all tasks share: where it ends, and its parameters."""
    held: Any = model  # its parts are not typed
    own = sum(count_parameters(head) for head in held.heads)
    where = f"up to {model.config.cut}" if model.config.cut else "all layers but the classifiers"
    if model.config.model_type == "zipit-model":
        where = "all that the models have in common"
    lines = ["shared layers", where, f"{si(count_parameters(model) - own)} parameters"]
    return lines if len(model.config.tasks) > 1 else ["one smaller model", lines[-1]]


def _tasks(model: ZipItPreTrainedModel) -> list[list[str]]:
    """For every task, its name, and what is its own; the last entry counts what is left out."""
    held: Any = model
    heads = model.config.heads or []
    sizes = {
        number: count_parameters(head)
        for head, group in zip(held.heads, model.config.branches, strict=False)
        for number in group
    }
    found = []
    for number, head in enumerate(heads[:MOST]):
        kind = str(head.get("kind", "image-classification"))
        what = f"{len(head['id2label'])} classes" if kind == "image-classification" else kind
        size = f", {si(sizes[number])} parameters" if number in sizes else ""
        found.append([_short(str(head["task"])), what + size])
    left_out = len(heads) - MOST
    return found + ([[f"and {left_out} more"]] if left_out > 0 else [])


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _box(draw: ImageDraw.ImageDraw, corners: Sequence[float], color: str) -> None:
    place = [round(_SCALE * value) for value in corners]
    draw.rounded_rectangle(place, radius=8 * _SCALE, fill=color, outline=_INK, width=_SCALE)


def _arrow(draw: ImageDraw.ImageDraw, start: Sequence[float], end: Sequence[float]) -> None:
    x, y = (_SCALE * value for value in end)
    draw.line([*(_SCALE * value for value in start), x - 8 * _SCALE, y], fill=_INK, width=2 * _SCALE)
    draw.polygon([(x, y), (x - 9 * _SCALE, y - 5 * _SCALE), (x - 9 * _SCALE, y + 5 * _SCALE)], fill=_INK)


def _write(draw: ImageDraw.ImageDraw, middle: Sequence[float], lines: Sequence[str], size: int) -> None:
    """Write lines around a point, which is their middle; the first is larger."""
    fonts = [ImageFont.load_default(_SCALE * (size if number == 0 else size - 3)) for number in range(len(lines))]
    step = _SCALE * (size + 5)
    x, y = (_SCALE * value for value in middle)
    for number, (line, font) in enumerate(zip(lines, fonts, strict=True)):
        draw.text((x, y + (number - (len(lines) - 1) / 2) * step), line, fill=_INK, font=font, anchor="mm")
