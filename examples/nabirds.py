"""Fine-tune a model on NABirds: 555 bird categories, 23,929 training and 24,633 test images.

    python examples/nabirds.py NABIRDS -o models/nabirds
    python examples/nabirds.py NABIRDS -o models/nabirds-vit --base google/vit-base-patch16-224-in21k

NABIRDS is a folder with the unpacked `nabirds.tar.gz` (https://dl.allaboutbirds.org/nabirds, terms to accept):
`images.txt`, `image_class_labels.txt`, `train_test_split.txt`, `classes.txt` and `images/`.
"""

from cub200 import bird_files
from fine_tuning import Task, main

TASK = Task("nabirds", bird_files, None, "resnet50.tv_in1k")

if __name__ == "__main__":
    main(TASK, __doc__)
