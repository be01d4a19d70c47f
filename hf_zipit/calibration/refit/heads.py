"""A refit of the heads alone."""

from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.refit.refit import refit


def refit_heads(merge: MergeState) -> None:
    """Refit the heads and leave the trunk as it is."""
    refit(merge, trunk=False)
