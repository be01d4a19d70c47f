"""ZipIt! (Stoica et al., ICLR 2024) on CIFAR: tables 1, 2, 10, 11 and 14, beside ours.

    python benchmarks/papers/zipit.py [--quick | --gpu] [--only N ...] [--cifar10 DIR] [--cifar100 DIR] [--out DIR]

Tables 1 and 2 train towards text features of CLIP; here they are random orthogonal class vectors, which need no
download. The paper zips 13 and 7 of 20 layers where the cuts here are `layer2` and `layer1`.
"""

from rerun import Setting, Training, rerun

SETTINGS = [
    Setting(
        "table 1: CIFAR-10 5+5, ResNet-20 x4, class vectors",
        "cifar10",
        Training(width=4, targets="codes"),
        {
            "average": (None, 43.0),
            "git-rebasin": (None, 46.2),
            "permute": (None, 58.4),
            "zip": (None, 79.1),
            "zip, cut layer2": (None, 83.8),
            "ensemble": (None, 87.4),
        },
        cuts=["layer2"],
    ),
    Setting(
        "table 2: CIFAR-100 50+50, ResNet-20 x8, class vectors",
        "cifar100",
        Training(width=8, targets="codes"),
        {
            "git-rebasin": (None, 40.9),
            "permute": (None, 42.8),
            "zip": (None, 54.9),
            "zip, cut layer2": (None, 70.2),
            "ensemble": (None, 73.5),
        },
        cuts=["layer2"],
    ),
    Setting(
        "table 10: CIFAR-100 50+50, ResNet-20 x16, labels",
        "cifar100",
        Training(width=16),
        {
            "average": (4.9, 2.7),
            "git-rebasin": (5.6, 3.1),
            "permute": (31.8, 20.0),
            "zip": (39.9, 27.9),
            "zip, cut layer2": (51.9, 38.6),
            "zip, cut layer1": (60.6, 47.0),
            "ensemble": (74.7, 60.5),
        },
        cuts=["layer2", "layer1"],
    ),
    Setting(
        "table 11: CIFAR-10 5+5, VGG-11, labels",
        "cifar10",
        Training(model="vgg11"),
        {
            "average": (20.9, 10.2),
            "permute": (47.8, 25.4),
            "zip": (56.5, 33.2),
            "ensemble": (88.6, 66.6),
        },
    ),
    Setting(
        "table 14: CIFAR-10 5+5, ResNet-20 x16, labels",
        "cifar10",
        Training(width=16),
        {
            "average": (46.6, 30.4),
            "git-rebasin": (38.9, 27.3),
            "permute": (80.4, 45.4),
            "zip": (87.4, 66.0),
            "zip, cut layer2": (90.5, 73.4),
            "zip, cut layer1": (91.7, 75.5),
            "ensemble": (94.1, 80.0),
        },
        cuts=["layer2", "layer1"],
    ),
]

if __name__ == "__main__":
    rerun("zipit", SETTINGS, __doc__)
