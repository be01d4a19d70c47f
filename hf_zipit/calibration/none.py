"""No calibration."""

from hf_zipit.calibration.merge_state import MergeState


def none(merge: MergeState) -> None:
    """Leave the merged model as it is."""
