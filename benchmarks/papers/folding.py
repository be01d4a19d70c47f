"""Model folding (Wang et al., ICLR 2025) on CIFAR-10 5+5: merges of two networks with REPAIR, beside ours.

    python benchmarks/papers/folding.py [--quick | --gpu] [--cifar10 DIR] [--out DIR]

One network made smaller is measured by `benchmarks/fold.py`.
"""

from rerun import Setting, Training, rerun

SETTINGS = [
    Setting(
        "CIFAR-10 5+5, VGG-11 with batch norm, REPAIR",
        "cifar10",
        Training(model="vgg11_bn"),
        {"weight-kmeans": (None, 71.0), "zip": (None, 69.0)},
    ),
    Setting(
        "CIFAR-10 5+5, ResNet-18, REPAIR",
        "cifar10",
        Training(model="resnet18", width=4),
        {"weight-kmeans": (None, 75.0), "zip": (None, 74.0), "git-rebasin": (None, 48.0)},
    ),
]

if __name__ == "__main__":
    rerun("folding", SETTINGS, __doc__)
