"""A refit in which every image is taught by the parent of its own task."""

import logging

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.refit.refit import refit

_log = logging.getLogger("hf_zipit")


def refit_per_task(merge: MergeState) -> None:
    """Refit towards each parent alone on the images of its own task. This needs one data set per model.

    A single data set counts as the first task's. Then the first parent teaches all images, and a warning says so.
    """
    if len(merge.passes.images) == 1:
        _log.warning(
            "refit-per-task got one data set for all models, so only the first model teaches the trunk: "
            "give one data set per model, or use refit"
        )
    refit(merge, per_task=True)
