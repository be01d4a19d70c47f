"""Convert CIFAR ResNet checkpoints with `shortcut` / `linear` parameter names to Hub-format timm folders.

    python examples/convert_cifar_resnet.py CHECKPOINT_FOLDER OUT

CHECKPOINT_FOLDER holds `model.safetensors` (names `conv1`, `bn1`, `layer{s}.{b}.shortcut.{0,1}`, `linear`) and
`model.json` with the keys `width`, `class_order`, `own_classes` and `input` (size, mean, std). Of the classifier, only
the rows of `own_classes` are kept. OUT can be loaded by timm and merged by `hf-zipit merge`.
"""

import argparse
import json
from pathlib import Path

import timm
from safetensors.torch import load_file
from timm.models import save_for_hf

import hf_zipit.models.cifar_resnet  # noqa: F401  (registers cifar_resnet20 with timm)


def convert(source: Path, out: Path) -> None:
    """Convert the checkpoint in `source` to a timm folder."""
    about = json.loads((source / "model.json").read_text())
    own = about["own_classes"]
    state = {}
    for name, value in load_file(source / "model.safetensors").items():
        name = name.replace("shortcut.", "downsample.").replace("linear.", "fc.")
        state[name] = value[own] if name.startswith("fc.") else value
    args = {"width": about["width"]}
    model = timm.create_model("cifar_resnet20", num_classes=len(own), **args)
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or any(not name.endswith("num_batches_tracked") for name in missing):
        raise SystemExit(f"{source} is not a CIFAR ResNet-20: missing {missing}, unexpected {unexpected}")
    size = about["input"]["size"]
    config = {
        "num_classes": len(own),
        "label_names": [about["class_order"][i] for i in own],
        "pretrained_cfg": {"mean": about["input"]["mean"], "std": about["input"]["std"], "input_size": [3, *size]},
    }
    model.pretrained_cfg.update(config["pretrained_cfg"])
    save_for_hf(
        model, out, model_config={"label_names": config["label_names"]}, model_args=args, safe_serialization=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    convert(arguments.source, arguments.out)
