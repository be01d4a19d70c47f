"""MuDSC (Xu et al., CVPR 2024) on CIFAR: own initialisations, and fine-tunes of one base, beside ours.

    python benchmarks/papers/mudsc.py [--quick | --gpu] [--only N ...] [--cifar10 DIR] [--cifar100 DIR] [--out DIR]

The paper's `A. Align` is `permute`, and its `W. Zip` `weight-zip`. Its models of one base start from ImageNet; those
here from a small network that was trained on the other CIFAR, so compare the order of the rows, not their values.
"""

from rerun import Setting, Training, rerun

SETTINGS = [
    Setting(
        "CIFAR-100 50+50, ResNet-20 x8, class vectors, own initialisations",
        "cifar100",
        Training(width=8, targets="codes"),
        {
            "average": (24.22, 16.52),
            "git-rebasin": (56.94, 41.33),
            "permute": (61.13, 44.33),
            "mudsc-align": (62.81, 45.50),
            "zip": (66.78, 54.69),
            "weight-zip": (67.65, 55.16),
            "mudsc-zip": (68.13, 56.01),
        },
    ),
    Setting(
        "CIFAR-10 5+5, ResNet-20 x8, class vectors, own initialisations",
        "cifar10",
        Training(width=8, targets="codes"),
        {
            "average": (75.24, 54.42),
            "git-rebasin": (88.57, 60.61),
            "permute": (89.21, 61.71),
            "mudsc-align": (89.34, 60.84),
            "zip": (94.61, 82.44),
            "weight-zip": (94.71, 82.85),
            "mudsc-zip": (94.88, 83.09),
        },
    ),
    Setting(
        "CIFAR-100 50+50, fine-tunes of one base (the paper: ResNet-26 from ImageNet)",
        "cifar100",
        Training(width=4),
        {
            "average": (74.75, 61.44),
            "git-rebasin": (74.79, 61.39),
            "permute": (75.41, 61.91),
            "mudsc-align": (76.14, 62.84),
            "zip": (73.68, 60.23),
            "weight-zip": (74.69, 61.28),
            "mudsc-zip": (75.01, 61.58),
        },
        base="cifar10",
        differs="Here: ResNet-20 x4 from CIFAR-10.",
    ),
    Setting(
        "CIFAR-10 5+5, fine-tunes of one vision transformer (the paper: ViT-S from ImageNet, CIFAR-100 50+50)",
        "cifar10",
        Training(model="vit", width=2, batch_size=125),
        {
            "average": (84.32, 70.16),
            "git-rebasin": (84.32, 70.16),
            "permute": (84.22, 69.99),
            "mudsc-align": (84.39, 70.09),
            "zip": (83.05, 68.57),
            "weight-zip": (84.32, 70.16),
            "mudsc-zip": (84.38, 70.10),
        },
        base="cifar100",
        differs="Here: a ViT of 4 blocks and patches of 4 pixels, from CIFAR-100.",
    ),
]

if __name__ == "__main__":
    rerun("mudsc", SETTINGS, __doc__)
