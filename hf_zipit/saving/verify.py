"""A saved merge is loaded again and compared, so that a folder never holds another model than the one in memory."""

from pathlib import Path

import torch

from hf_zipit.errors import OutputError
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.running import tensors_in
from hf_zipit.sources.merges import open_merged
from hf_zipit.sources.preprocessing import preprocessing_of
from hf_zipit.text import first_line, size_text

TOLERANCE = 1e-3  # relative to the largest output: the same weights may be stored in another order in memory


@torch.no_grad()
def check_written(model: ZipItPreTrainedModel, folder: Path) -> None:
    """Compare a merge with what was written of it, on one image of noise.

    Raises:
        OutputError: the outputs differ, because the config builds another network or the model has hooks.
    """
    again = open_merged(folder, type(model))
    pixels = torch.randn(1, *preprocessing_of(model)[0], generator=torch.Generator().manual_seed(0))
    was_training = model.training
    try:
        mine = model.eval()(pixels.to(model.device, model.dtype), tasks=model.config.tasks)
        its = again(pixels.to(again.dtype), tasks=model.config.tasks)
    except Exception as error:  # a network fails in many ways on an image that it cannot read
        size = size_text(pixels.shape[1:])
        raise OutputError(
            f"the merge is not saved: it cannot run on an image of its stated input size {size} ({first_line(error)}); "
            "pass Hub-format folders whose config.json holds the models' arguments"
        ) from error
    finally:
        model.train(was_training)
    for a, b in zip(tensors_in(mine), tensors_in(its), strict=True):
        far = float((a.cpu().float() - b.float()).abs().max()) if a.shape == b.shape else float("inf")
        if far > TOLERANCE * max(1e-6, float(a.abs().max())):
            raise OutputError(
                f"the merge is not saved: loaded again, it computes something else (difference {far:.2g}). Its config "
                "does not describe it: remove hooks from the parents, or pass Hub-format folders whose config.json "
                "holds the models' arguments"
            )
