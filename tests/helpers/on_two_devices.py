"""python -m tests.helpers.on_two_devices MODEL: makes merges of two tiny models on the CPU and on the pretended device.

Prints for each the largest difference of the weights, and of the logits. It runs in a process of its own, as the device
stays registered.
"""

import functools
import sys

import torch

import hf_zipit
from tests.helpers import pretend_device  # noqa: F401  (registers the device)
from tests.helpers.families import timm_convnext
from tests.helpers.models import hf_vit, images, tiny

MODELS = {
    "resnet": functools.partial(tiny, "cifar_resnet20"),
    "vit": hf_vit,
    "convnext": timm_convnext,
}
SETTINGS = {
    "resnet": [{}, {"method": "permute", "calibrate": "repair"}],
    "vit": [{}, {"heads": "all-random", "method": "zip", "calibrate": "batchnorm"}],
    "convnext": [{"method": "zip", "calibrate": "refit", "verdict": False}],
}


def main() -> None:
    """Merge twice with all settings of a model, and compare."""
    pixels = images(100)
    for options in SETTINGS[sys.argv[1]]:
        states, answers = [], []
        for device in ("cpu", "pretend:0"):
            models = [MODELS[sys.argv[1]](seed) for seed in (0, 1)]
            merged = hf_zipit.merge(models, pixels, device=device, cache=False, **options)
            states.append(merged.state_dict())
            with torch.no_grad():
                answers.append(merged.to(device).eval()(pixels[0].to(device)).logits.cpu())
        one, two = states
        difference = max(float((one[key].double() - two[key].double()).abs().max()) for key in one)
        sys.stdout.write(f"{difference} {float((answers[0] - answers[1]).abs().max())}\n")


if __name__ == "__main__":
    main()
