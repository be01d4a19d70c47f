"""scikit-learn's handwritten digits (1797 images of 8 x 8 pixels) as images and as parquet files.

python examples/digits_data.py FOLDER    # writes train.parquet and test.parquet
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = [str(digit) for digit in range(10)]


def digits(split: str) -> list[tuple[Image.Image, int]]:
    """The `train` or `test` images with their labels; every fourth image is in the test split."""
    data = load_digits()
    keep = (np.arange(len(data.target)) % 4 == 0) == (split == "test")
    pixels = np.round(data.images[keep] * (255 / 16)).astype(np.uint8)
    return [(Image.fromarray(p), int(t)) for p, t in zip(pixels, data.target[keep], strict=True)]


def write_parquet(folder: Path) -> Path:
    """Write `train.parquet` and `test.parquet`, with an image and a label column, to a folder and return it."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images, labels = zip(*digits(split), strict=True)
        rows = {"image": list(images), "label": list(labels)}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
    return folder


if __name__ == "__main__":
    write_parquet(Path(sys.argv[1]))
