"""Fine-tune a model on CUB-200-2011: 200 bird species, 5,994 training and 5,794 test images.

    python examples/cub200.py CUB -o models/cub
    python examples/cub200.py CUB -o models/cub-vit --base google/vit-base-patch16-224-in21k

CUB is a folder with the unpacked `CUB_200_2011.tgz` (https://www.vision.caltech.edu/datasets/cub_200_2011):
`images.txt`, `image_class_labels.txt`, `train_test_split.txt`, `classes.txt` and `images/`, directly or in a subfolder
`CUB_200_2011`. Without CUB a copy on the Hub is used.
"""

from pathlib import Path

import datasets
from fine_tuning import Task, listed, main


def original(root: Path, split: str) -> datasets.Dataset:
    """Read one split of the original files."""
    inside = root / "CUB_200_2011"
    return bird_files(inside if inside.is_dir() else root, split)


def bird_files(root: Path, split: str) -> datasets.Dataset:
    """Read one split of CUB-200-2011 or NABirds: text files joined on the image id.

    Class ids may have gaps, and classes in `classes.txt` may have no images (in NABirds, 555 of 1011 have some).
    Classes with images are numbered in the order of their ids.
    """
    paths, classes, train, names = (
        dict(line.split(maxsplit=1) for line in (root / f"{file}.txt").read_text(encoding="utf-8").splitlines())
        for file in ("images", "image_class_labels", "train_test_split", "classes")
    )
    used = sorted(set(classes.values()), key=int)
    labels = {number: place for place, number in enumerate(used)}
    wanted = "1" if split == "train" else "0"
    images = [image for image in paths if train[image].strip() == wanted]
    files = [root / "images" / paths[image].strip() for image in images]
    return listed(files, [labels[classes[image]] for image in images], [names[n].strip() for n in used])


TASK = Task("cub", original, "Donghyun99/CUB-200-2011", "resnet50.a3_in1k")

if __name__ == "__main__":
    main(TASK, __doc__)
