"""A refit in which every image is taught by the parent of its own task."""

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.refit.refit import refit


def refit_per_task(merge: MergeState) -> None:
    """Refit towards each parent alone on the images of its own task. Needs one data set per model."""
    refit(merge, per_task=True)
