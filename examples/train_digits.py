"""Train the two models of the demo: small timm ResNets on scikit-learn's handwritten digits 0-4 and 5-9.

    python examples/train_digits.py [OUT]

OUT is `examples/digits` by default. The models have different random initialisations and are trained on their own
digits only. Takes about a minute on two cores.
"""

import sys
from pathlib import Path

import timm
import torch
from digits_data import digits
from timm.models import save_for_hf
from torch import nn

import hf_zipit.models.cifar_resnet  # noqa: F401  (registers cifar_resnet20 with timm)

TASKS = {"digits-0-4": range(0, 5), "digits-5-9": range(5, 10)}
ARGS = {"depth": 8, "width": 1}
PREPROCESSING = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bicubic"}
EPOCHS, BATCH = 40, 32


def pixels_and_labels(split: str, classes: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Preprocessed images of some digits, and labels from 0."""
    transform = timm.data.create_transform(**PREPROCESSING, crop_pct=1.0, is_training=False)
    chosen = [(image, label) for image, label in digits(split) if label in classes]
    pixels = torch.stack([transform(image.convert("RGB")) for image, _ in chosen])
    return pixels, torch.tensor([label - classes.start for _, label in chosen])


def train(classes: range, seed: int) -> nn.Module:
    """Train one model, with random shifts by up to three pixels as augmentation, and print its accuracy."""
    torch.manual_seed(seed)
    model = timm.create_model("cifar_resnet20", num_classes=len(classes), **ARGS)
    pixels, labels = pixels_and_labels("train", classes)
    steps = EPOCHS * -(-len(pixels) // BATCH)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.1, total_steps=steps, pct_start=0.3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(pixels)).split(BATCH):
            shift = torch.randint(-3, 4, (2,)).tolist()
            loss = nn.functional.cross_entropy(model(pixels[batch].roll(shift, (2, 3))), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        pixels, labels = pixels_and_labels("test", classes)
        print(f"{classes.start}-{classes.stop - 1}: {100 * (model(pixels).argmax(1) == labels).double().mean():.1f} %")
    return model


def main(out: Path) -> None:
    """Train both models and save them in Hub format."""
    for seed, (name, classes) in enumerate(TASKS.items()):
        model = train(classes, seed)
        model.pretrained_cfg.update(PREPROCESSING)
        config = {"label_names": [str(digit) for digit in classes]}
        save_for_hf(model, out / name, model_config=config, model_args=ARGS, safe_serialization=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "digits")
