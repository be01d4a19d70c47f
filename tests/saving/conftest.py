"""Models on disk, to merge and save."""

import json

import pytest
from safetensors.torch import save_file

from tests.helpers.models import TINY, tiny


@pytest.fixture(scope="session")
def parents(tmp_path_factory):
    """Two timm ResNets in Hub format, with class names."""
    home = tmp_path_factory.mktemp("timm")
    for seed, task in enumerate(("pets", "birds")):
        model = tiny("resnet18", seed)
        (home / task).mkdir()
        save_file(model.state_dict(), home / task / "model.safetensors")
        args = {k: v for k, v in TINY["resnet18"].items() if k != "num_classes"}
        about = {"architecture": "resnet18", "num_classes": 5, "label_names": [f"{task}-{i}" for i in range(5)]}
        settings = {"input_size": [3, 32, 32], "mean": [0.1, 0.2, 0.3], "crop_pct": 0.9}
        (home / task / "config.json").write_text(json.dumps({**about, "model_args": args, "pretrained_cfg": settings}))
    return [home / "pets", home / "birds"]
