"""The folder of a reader who has all models and images that the pages of the documentation name."""

import datasets
import timm
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from hf_zipit.transform.permute import randomise
from tests.helpers.detectors import NAMES, object_data, save_detector
from tests.helpers.wholes import NARROW, unet

COPIES = {"pets": "digits-0-4", "birds": "digits-5-9", "cars": "digits-5-9", "cats": "digits-0-4", "base": "digits-0-4"}
SHARE = {"pets": 1, "birds": 1, "cars": 0.97, "cats": 1.02, "base": 1.01}  # factor on the first layer's weights
IMAGES = ("animals", "images", "pets-data", "birds-data")
DETECTORS = {"people": "a", "vehicles": "b"}


def furnish(folder, digits, digits_data):
    """Write `user/...` for all names that the pages have, and a photo.

    Args:
        folder: where `user` is made.
        digits: the folder of the two digit classifiers.
        digits_data: their images, as `train.parquet` and `test.parquet`.
    """
    Image.linear_gradient("L").save(folder / "photo.jpg")
    user = folder / "user"
    for name, copied in COPIES.items():
        _copy(user / name, digits / copied, SHARE[name])
    for split in ("train", "test"):
        rows = datasets.Dataset.from_parquet(str(digits_data / f"{split}.parquet"), cache_dir=str(folder / "rows"))
        for name in IMAGES:
            (user / name).mkdir(exist_ok=True)
            rows.select(range(120)).to_parquet(str(user / name / f"{split}.parquet"))
    changes = {"num_classes": 5, **NARROW}
    model = timm.create_model("resnet18", pretrained_cfg={"input_size": (3, 32, 32)}, **changes).eval()
    save_for_hf(randomise(model, 1), user / "classifier", model_args=NARROW, safe_serialization=True)
    randomise(unet().eval(), 2).save_pretrained(user / "segmenter")
    for seed, (name, copied) in enumerate(DETECTORS.items()):
        save_detector(folder / "rows", copied, seed).rename(user / name)
        boxes = [[((4.0, 4.0, 12.0, 12.0), NAMES[copied][i % 2])] for i in range(8)]
        (user / f"{name}-data").mkdir()
        for split in ("train", "test"):
            object_data(boxes, NAMES[copied]).to_parquet(str(user / f"{name}-data" / f"{split}.parquet"))


def _copy(folder, model, share):
    """A copy of a model whose first layer is a little larger or smaller."""
    folder.mkdir(parents=True)
    weights = load_file(model / "model.safetensors")
    first = next(name for name in weights if name.endswith("weight"))
    save_file({**weights, first: weights[first] * share}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((model / "config.json").read_bytes())
