"""Partial fusion (ICML 2026) on CIFAR-10: accuracy against size for two specialists, even and odd classes, beside ours.

    python benchmarks/papers/partial_fusion.py [--quick | --gpu] [--cifar10 DIR] [--out DIR]

The paper merges ResNet-18s; those here are ResNet-20s of width 4. It leaves a share of the units unmerged: 0.4 is
width 1.4. Widths count units, so the FLOPs grow faster.
"""

from rerun import Setting, Training, rerun

SETTINGS = [
    Setting(
        "CIFAR-10, even and odd classes, labels, own initialisations",
        "cifar10",
        Training(width=4),
        {
            "partial-ot": (None, 66.4),
            "partial-ot, width 1.4": (None, 83.4),
            "partial-ot, width 1.5": (None, 87.4),
            "partial-ot, width 1.8": (None, 90.6),
            "ensemble": (None, 91.3),
        },
        split="even",
        widths=[1.4, 1.5, 1.8],
        differs="The paper: ResNet-18. Here: ResNet-20 x4.",
    ),
]

if __name__ == "__main__":
    rerun("partial-fusion", SETTINGS, __doc__)
