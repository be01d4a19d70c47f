"""Odd config.json and preprocessor_config.json of the parents."""

import json
import shutil
from pathlib import Path
from random import Random

from tests.fuzz import odd
from tests.fuzz.law import OUT, Case
from tests.fuzz.world import COUNT, World, read

BY_HAND = (  # what people write into config.json, or what other programs leave there
    ("label_names", ["ape", "ape"]),
    ("label_names", ["ape"]),
    ("label_names", ["ape", "bee", "cat"]),
    ("label_names", [0, 1]),
    ("label_names", {"0": "ape", "1": "bee"}),
    ("label_names", {"1": "ape", "2": "bee"}),
    ("id2label", {"0": "ape"}),
    ("id2label", {"0": "ape", "1": "ape"}),
    ("id2label", {"1": "ape", "2": "bee"}),
    ("id2label", {"a": "ape", "b": "bee"}),
    ("id2label", {"0": 0, "1": 1}),
    ("num_classes", 0),
    ("num_labels", 0),
    ("num_labels", 3),
    ("torch_dtype", "float16"),
    ("dtype", "float8"),
    ("architecture", "resnet34"),
    ("architecture", "no_such_net"),
    ("architecture", "timm/resnet18"),
    ("model_type", "resnet"),
    ("model_type", "zipit"),
    ("model_type", "zipit-model"),
    ("model_type", "bert"),
    ("architectures", ["ResNetForImageClassification"]),
    ("architectures", ["ViTModel"]),
    ("architectures", ["Nothing"]),
    ("architectures", "ViTForImageClassification"),
    ("auto_map", {"AutoModelForImageClassification": "code.Model"}),
    ("quantization_config", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    ("problem_type", "multi_label_classification"),
    ("hidden_act", "no_such_function"),
    ("hidden_dropout_prob", 0.5),
    ("layer_norm_eps", 1.0),
    ("num_hidden_layers", 10**6),
    ("hidden_size", 10**6),
)


def make(rng: Random, world: World, folder: Path) -> Case:
    """A command with a parent whose config is odd."""
    name, (first, second) = world.family(rng)
    parent = Path(shutil.copytree(first, folder / "parent"))
    file = parent / "config.json"
    if (parent / "preprocessor_config.json").is_file() and rng.random() < 0.3:
        file = parent / "preprocessor_config.json"
    told = _spoil(rng, file)
    sides = [parent, second] if rng.random() < 0.8 else [second, parent]
    merge: list[str | Path] = ["merge", *sides, "--data", world.data, "-o", OUT]
    command = rng.choice(
        [
            merge,
            merge,
            [*merge, "--method", "average", "--calibrate", "none"],
            ["merge", *sides, "--dry-run", "--json"],
            ["merge", *sides, "--dry-run"],
            ["inspect", parent, "--json"],
            ["inspect", parent],
            ["check-spec", parent],
            ["trace", parent],
        ]
    )
    return Case(f"{name}: {file.name}: {told}", command, images=COUNT if "average" not in command else None)


def _spoil(rng: Random, file: Path) -> str:
    """Change a config on disk, and say how."""
    how = rng.random()
    if how < 0.1:
        data, told = odd.broken(rng, file.read_bytes())
        file.write_bytes(data)
        return told
    if how < 0.13:
        file.unlink()
        return "missing"
    if how < 0.3 and file.name == "config.json":
        key, value = rng.choice(BY_HAND)
        config, told = {**read(file), key: value}, f"{key}: {value}"
    else:
        config, told = odd.changed(rng, read(file))
    file.write_text(json.dumps(config), encoding="utf-8")
    return told
