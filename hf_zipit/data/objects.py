"""Images with objects: boxes and their classes, as detection data sets on the Hub hold them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from hf_zipit.data.draw import Sample
from hf_zipit.data.labels import Labels
from hf_zipit.data.rows import TEST, rows_of
from hf_zipit.data.stored import PIXELS, StoredImages, image_column, stored_rows
from hf_zipit.errors import DataError

USUAL = "objects"
BOX, CATEGORY, CROWD = "bbox", "category", "iscrowd"


@dataclass(frozen=True)
class Objects:
    """The objects in one image.

    Attributes:
        boxes: left, top, width and height in pixels, `(n, 4)`.
        categories: what each is, as the data set says: a number or a text.
        crowd: whether each stands for many that are not told apart.
    """

    boxes: Tensor
    categories: list[Any]
    crowd: list[bool]


@dataclass(frozen=True)
class ObjectImages:
    """Images with their objects.

    Attributes:
        images: the images as they are stored.
        objects: of each image.
        labels: the categories of every image, with their names if the data set states them.
        name: of the data set.
    """

    images: StoredImages
    objects: Sequence[Objects]
    labels: Labels
    name: str

    def __len__(self) -> int:
        return len(self.objects)

    def image(self, index: int) -> Image.Image:
        """Image i in the channels of the models; an error names it."""
        return self.images.picture(index)

    def fingerprint(self) -> str:
        """A hash of the images and of what is in them."""
        held = [(one.boxes.tolist(), one.categories, one.crowd) for one in self.objects]
        return hashlib.sha256(f"{self.images.fingerprint()} {held}".encode()).hexdigest()


def open_objects(
    data: Any,
    *,
    channels: int = 3,
    num_images: int | None = None,
    seed: int = 0,
    skip_bad_images: int = 0,
    label_column: str | None = None,
) -> ObjectImages:
    """Images with objects.

    Args:
        data: a Hub id or a path, with or without `:split`, or a `datasets.Dataset`. It has a column `objects`, or
            another that `label_column` names: for every image the lists `bbox`, of `[left, top, width, height]` in
            pixels as in COCO, and `category`; and, where some boxes hold crowds, `iscrowd`. Or a list of objects.
        channels: of the images that the models read.
        num_images: use this many images, chosen by the seed; `None` uses all.
        seed: of the choice of images.
        skip_bad_images: how many rows whose image cannot be decoded are left out.
        label_column: the name of the column.

    Raises:
        DataError: the data cannot be read, or there is no such column.
        OptionError: there are fewer images than `num_images`.
    """
    rows, name = rows_of(data, TEST)
    column = label_column or USUAL
    if column not in rows.features:
        raise DataError(
            f"{name} has no column '{column}' of boxes; its columns: {', '.join(rows.features)}. Name it with "
            "label_column (--label-column)"
        )
    image = image_column(rows, name)
    if image == PIXELS:
        raise DataError(f"{name}: boxes lie in images, and it has only preprocessed pixels; give a column of images")
    chosen, _ = Sample(num_images, seed=seed).rows(len(rows), name)
    images = StoredImages(stored_rows(rows, image), image, chosen, name, None, channels)
    if skip_bad_images:
        images.skip_bad(skip_bad_images)
    cells = rows.with_format(None).select_columns([column])[column]
    found = [_objects(cells[number], f"{name}: image {number}, column '{column}'") for number in images.chosen]
    labels = Labels(column, [one.categories for one in found], _names(rows.features[column]))
    return ObjectImages(images, found, labels, name)


def _objects(cell: Any, where: str) -> Objects:
    """The objects of one image, from a mapping of lists or a list of mappings."""
    keys = (BOX, CATEGORY, CROWD)
    listed = {key: [one.get(key) for one in cell] for key in keys} if isinstance(cell, list) else dict(cell or {})
    boxes, categories = (listed.get(key) or [] for key in (BOX, CATEGORY))
    if cell and not {BOX, CATEGORY} <= set(cell[0] if isinstance(cell, list) else cell):
        raise DataError(f"{where}: it holds {', '.join(map(str, listed))}; '{BOX}' and '{CATEGORY}' are needed")
    if len(boxes) != len(categories):
        raise DataError(f"{where}: {len(boxes)} boxes and {len(categories)} categories; there is one for each")
    for box in boxes:
        numbers = isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(x, int | float) for x in box)
        if not numbers or not torch.tensor(box, dtype=torch.float64).isfinite().all() or min(box[2:]) < 0:
            raise DataError(f"{where}: {box!r:.80} is no box: left, top, width and height in pixels are needed")
    crowd = [bool(one) for one in listed.get(CROWD) or [False] * len(boxes)]
    return Objects(torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), list(categories), crowd)


def _names(feature: Any) -> list[str] | None:
    """The names of the categories, if the data set states them."""
    inner = getattr(feature, "feature", feature)  # of a list of objects
    category = inner.get(CATEGORY) if isinstance(inner, dict) else None
    names: list[str] | None = getattr(getattr(category, "feature", category), "names", None)
    return names
