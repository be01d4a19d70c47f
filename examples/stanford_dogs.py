"""Fine-tune a model on Stanford Dogs: 120 breeds, 12,000 training and 8,580 test images.

    python examples/stanford_dogs.py DOGS -o models/dogs
    python examples/stanford_dogs.py DOGS -o models/dogs-vit --base google/vit-base-patch16-224-in21k

DOGS is a folder with the unpacked `images.tar` and `lists.tar` (http://vision.stanford.edu/aditya86/ImageNetDogs):
`Images/<breed>/<image>.jpg`, `train_list.mat` and `test_list.mat`. Without DOGS a copy on the Hub is used.
"""

from pathlib import Path

import datasets
from fine_tuning import Task, listed, main
from scipy.io import loadmat


def original(root: Path, split: str) -> datasets.Dataset:
    """Read one split of the original files.

    `<split>_list.mat` has `annotation_list`, the path of each image without its extension, and `labels`, from 1.
    """
    both = {name: loadmat(str(root / f"{name}_list.mat"), squeeze_me=True) for name in ("train", "test")}
    breeds = {}
    for lists in both.values():
        for path, label in zip(lists["annotation_list"], lists["labels"], strict=True):
            breeds[int(label)] = str(path).partition("/")[0].partition("-")[2]
    labels = {label: place for place, label in enumerate(sorted(breeds))}
    lists = both[split]
    paths = [root / "Images" / f"{path}.jpg" for path in lists["annotation_list"]]
    return listed(paths, [labels[int(label)] for label in lists["labels"]], [breeds[label] for label in labels])


TASK = Task("dogs", original, "maurice-fp/stanford-dogs", "resnet50.a1_in1k")

if __name__ == "__main__":
    main(TASK, __doc__)
