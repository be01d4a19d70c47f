"""Mean average precision of detectors, as COCO measures it."""

import contextlib
import io
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit.data.objects import ObjectImages, open_objects
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.classes import ANOTHER_COLUMN, known_classes
from hf_zipit.progress import progress

PLACES = {"mAP": 0, "mAP50": 1, "mAP75": 2}  # of each metric among the numbers of COCO
_log = logging.getLogger("hf_zipit")
Found = Mapping[str, Tensor]  # scores (n,), labels (n,), and boxes (n, 4): corners in pixels


@dataclass(frozen=True)
class BoxTargets:
    """Images with the objects of one task, and what prepares them and makes boxes of outputs.

    Attributes:
        data: the images with all their objects.
        classes: the class of the task for each category of the data set that it has.
        processor: the image processor of the detectors.
        task: the name of the task.
    """

    data: ObjectImages
    classes: Mapping[Any, int]
    processor: Any
    task: str

    def fingerprint(self) -> str:
        """Identifies the images and their objects by content."""
        return self.data.fingerprint()


def open_box_targets(data: Any, head: Mapping[str, Any], processor: Any, **options: Any) -> BoxTargets:
    """The images and objects of a task.

    Args:
        data: see `open_objects`.
        head: name (`task`) and classes (`id2label`) of the task.
        processor: the image processor of the detectors.
        options: of `open_objects`.

    Raises:
        DataError: there is no image processor, or no object belongs to the task.
    """
    if processor is None:
        raise DataError(
            f"task '{head['task']}' cannot be measured: its models have no image processor, which makes boxes of their "
            "outputs. Merge folders with a preprocessor_config.json"
        )
    opened = open_objects(data, **options)
    what = f"{opened.name}, column '{opened.labels.column}', task '{head['task']}'"
    names = [str(head["id2label"][i]) for i in sorted(head["id2label"])]
    classes = known_classes(opened.labels, names, what)
    every = list(itertools.chain.from_iterable(one.categories for one in opened.objects))
    known = sum(one in classes for one in every)
    if not known:
        raise DataError(f"{what}: no object is of a class of the task; {ANOTHER_COLUMN}")
    if known < len(every):
        others = len(every) - known
        _log.warning("%s: %d of %d objects are of no class of the task, and left out", what, others, len(every))
    return BoxTargets(opened, classes, processor, head["task"])


@torch.no_grad()
def box_scores(
    model: nn.Module, targets: BoxTargets, metrics: Sequence[str], of_merge: bool, device: torch.device
) -> dict[str, float]:
    """The metrics of one model on the images of a task; a merge is scored on its output for this task.

    Images keep the size that the image processor gives them, one at a time.
    """
    found = []
    like = next(model.parameters())
    label = f"Evaluating {targets.task if of_merge else 'a parent'}"
    for index in progress(range(len(targets.data)), label, images=1):
        image = targets.data.image(index)
        inputs = targets.processor(images=[image], return_tensors="pt")
        pixels = inputs["pixel_values"].to(device, like.dtype)
        output = model(pixels, tasks=targets.task).task_outputs[targets.task] if of_merge else model(pixels)
        if not output.logits.isfinite().all() or not output.pred_boxes.isfinite().all():
            raise DataError(f"the outputs of task '{targets.task}' are not finite; check its weights")
        size = torch.tensor([[image.height, image.width]], device=device)
        boxes = targets.processor.post_process_object_detection(output, threshold=0.0, target_sizes=size)[0]
        found.append({key: value.cpu() for key, value in boxes.items()})
    values = average_precisions(found, targets)
    return {name: values[name] for name in metrics}


def average_precisions(found: Sequence[Found], targets: BoxTargets) -> dict[str, float]:
    """The mean over classes of the average precision.

    `mAP` is also the mean over ten thresholds on the intersection over union, from 0.5 to 0.95; `mAP50` and `mAP75` are
    those at 0.5 and 0.75. Of an image the 100 surest boxes count.

    Args:
        found: the boxes that were found in every image.
        targets: the objects that are there.

    Raises:
        OptionError: pycocotools is not installed.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise OptionError("mAP needs pycocotools: pip install 'hf-zipit[detection]'") from None
    there = _there(targets)
    names = sorted({one["category_id"] for one in there})
    guesses = _guessed(found)
    if not guesses:
        return dict.fromkeys(PLACES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports every step
        truth = COCO()
        truth.dataset = {
            "images": [{"id": index} for index in range(len(found))],
            "annotations": there,
            "categories": [{"id": number} for number in names],
        }
        truth.createIndex()
        measured = COCOeval(truth, truth.loadRes(guesses), "bbox")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    return {name: float(measured.stats[place]) for name, place in PLACES.items()}


def _there(targets: BoxTargets) -> list[dict[str, Any]]:
    """The objects of the task as COCO lists them; their numbers begin with 1."""
    held = [
        {"image_id": index, "category_id": targets.classes[category], "bbox": box, "iscrowd": int(crowd)}
        for index, one in enumerate(targets.data.objects)
        for box, category, crowd in zip(one.boxes.tolist(), one.categories, one.crowd, strict=True)
        if category in targets.classes
    ]
    return [{"id": i, "area": one["bbox"][2] * one["bbox"][3], **one} for i, one in enumerate(held, 1)]


def _guessed(found: Sequence[Found]) -> list[dict[str, Any]]:
    """The boxes that were found as COCO lists them."""
    guesses = []
    for index, one in enumerate(found):
        corners = one["boxes"].double()
        boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        for score, label, box in zip(one["scores"].tolist(), one["labels"].tolist(), boxes.tolist(), strict=True):
            guesses.append({"image_id": index, "category_id": label, "bbox": box, "score": score})
    return guesses
