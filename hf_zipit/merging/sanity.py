"""Checks before and after a merge: the models run on the images, and the merge computes finite numbers."""

from collections.abc import Sequence

import torch

from hf_zipit.assembly.parents import Merged
from hf_zipit.data.batches import Passes
from hf_zipit.errors import SourceError
from hf_zipit.running import logits_of, tensors_in, working_copy
from hf_zipit.sources.source import Source
from hf_zipit.text import load_errors, size_text

LOOKED_AT = 4  # images of each data set, at most
ADVICE = "their weights or activations are too large for it; use another method or calibration"


@torch.no_grad()
def check_models_run(models: Sequence[Source], passes: Passes) -> None:
    """Run every model on the first image.

    Raises:
        SourceError: one cannot read it, or does not give finite numbers.
    """
    for model in models if passes.images else ():
        copy = working_copy(model.model, passes.device)
        pixels = passes.images[0][0][None].to(passes.device, next(copy.parameters()).dtype)
        shape = size_text(pixels.shape[1:])
        with load_errors(f"{model.name} cannot run on an image of {shape} (channels, height, width)", Exception):
            output = copy(pixels)
        if model.kind == "image-classification" and not logits_of(output).isfinite().all():
            raise SourceError(f"{model.name} gives outputs that are not finite; check its weights and preprocessing")


@torch.no_grad()
def check_finite(merged: Merged, method: str, passes: Passes) -> None:
    """Refuse a merge with weights that are not finite, or with such outputs on the first images of each data set.

    Args:
        merged: the merge, on the device of the passes.
        method: that made it, for the message.
        passes: over the images; without any, only the weights are checked.

    Raises:
        SourceError: a number is not finite.
    """
    try:
        merged.check_finite()
    except ValueError as error:
        raise SourceError(f"merging by {method} fails: {error}; {ADVICE}") from None
    for images in passes.images:
        first = torch.stack([images[i] for i in range(min(len(images), LOOKED_AT, passes.batch_size))])
        with load_errors("the merge cannot run; its spec may not name all that its steps use", Exception):
            answers = merged(first.to(passes.device, merged.dtype), tasks=merged.config.tasks)
        outputs = getattr(answers, "task_logits", None) or answers.task_outputs
        for task, output in outputs.items():
            if not all(value.isfinite().all() for value in tensors_in(output)):
                raise SourceError(f"merging by {method} fails: task '{task}' has outputs that are not finite; {ADVICE}")
