# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Boxes of several detectors in one list. Copied into merged repositories."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def joint_boxes(
    found: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, Mapping[int, str]], suppress: float | None = None
) -> list[dict[str, Any]]:
    """The boxes of all tasks in one image, the surest first.

    Args:
        found: for each task `scores (n,)`, `labels (n,)` and `boxes (n, 4)`: corners in pixels.
        names: for each task, the names of its classes.
        suppress: leave out a box that overlaps a surer one of another task by more than this (intersection over
            union); by default none is left out. Boxes of one task are never compared.

    Returns:
        For each box its `score`, its `label` as `task/class`, its `task`, and its `box` as pipelines give it.
    """
    boxes = [
        (score, task, names[task][int(label)], box)
        for task, mine in found.items()
        for score, label, box in zip(mine["scores"].tolist(), mine["labels"], mine["boxes"].cpu(), strict=True)
    ]
    kept: list[tuple[float, str, str, Tensor]] = []
    for one in sorted(boxes, key=lambda held: -held[0]):
        others = [box for _, task, _, box in kept if task != one[1]]
        if suppress is None or not others or float(overlaps(one[3], others).max()) <= suppress:
            kept.append(one)
    return [
        {
            "score": score,
            "label": f"{task}/{name}",
            "task": task,
            "box": dict(zip(CORNERS, box.int().tolist(), strict=True)),
        }
        for score, task, name, box in kept
    ]


def overlaps(box: Tensor, others: Sequence[Tensor]) -> Tensor:
    """Intersection over union of a box `(4,)` with others, all given by their corners; 0 for boxes without area.

    >>> overlaps(torch.tensor([0.0, 0.0, 2.0, 2.0]), [torch.tensor([1.0, 0.0, 3.0, 2.0])])
    tensor([0.3333])
    """
    every = torch.stack(list(others))
    low, high = torch.maximum(box[:2], every[:, :2]), torch.minimum(box[2:], every[:, 2:])
    common = (high - low).clamp(min=0).prod(1)
    areas = [(some[..., 2:] - some[..., :2]).clamp(min=0).prod(-1) for some in (box, every)]
    return common / (areas[0] + areas[1] - common).clamp(min=1e-9)
