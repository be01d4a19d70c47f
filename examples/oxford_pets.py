"""Fine-tune a model on Oxford-IIIT Pet: 37 breeds of cats and dogs, 3,680 training and 3,669 test images.

    python examples/oxford_pets.py -o models/pets
    python examples/oxford_pets.py PETS -o models/pets-vit --base google/vit-base-patch16-224-in21k

PETS is a folder with the unpacked `images.tar.gz` and `annotations.tar.gz`
(https://www.robots.ox.ac.uk/~vgg/data/pets): `images/<image>.jpg`, `annotations/trainval.txt` and
`annotations/test.txt`. Without PETS a copy on the Hub is used.
"""

from pathlib import Path

import datasets
from fine_tuning import Task, listed, main

FILES = {"train": "trainval.txt", "test": "test.txt"}


def original(root: Path, split: str) -> datasets.Dataset:
    """Read one split of the original files.

    Each line has an image name, a class id from 1, a species, and a breed id within the species. The image name is the
    class name followed by a number.
    """
    lines = {
        name: [line.split() for line in (root / "annotations" / file).read_text().splitlines() if line[:1] != "#"]
        for name, file in FILES.items()
    }
    names = {int(number): image.rpartition("_")[0] for both in lines.values() for image, number, *_ in both}
    labels = {number: place for place, number in enumerate(sorted(names))}
    paths = [root / "images" / f"{image}.jpg" for image, *_ in lines[split]]
    return listed(paths, [labels[int(number)] for _, number, *_ in lines[split]], [names[n] for n in labels])


TASK = Task("pets", original, "timm/oxford-iiit-pet", "resnet50.a2_in1k")

if __name__ == "__main__":
    main(TASK, __doc__)
