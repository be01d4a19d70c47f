"""The registry of calibrations. Importing it loads no other library, so that help texts can list them."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hf_zipit.errors import OptionError

if TYPE_CHECKING:
    from hf_zipit.calibration.merge_state import MergeState


@dataclass(frozen=True)
class Calibration:
    """One way to calibrate a merged model.

    Attributes:
        function: A function that changes the model of a `MergeState` in place, or a reference to it, `module:name`.
        summary: What the calibration does, in one line for help texts.
        after: Name of the calibration that runs before this one.
        joint: Whether it improves the joint prediction over the classes of all tasks; then all models must be
            classifiers.
        refits: Whether it fits layers by regression, which takes memory.
        images: Whether it reads images.

    >>> Calibration("hf_zipit.calibration.none:none", summary="leave the merge as it is").resolve().__name__
    'none'
    """

    function: "str | Callable[[MergeState], None]"
    summary: str = ""
    after: str | None = None
    joint: bool = False
    refits: bool = False
    images: bool = True

    def resolve(self) -> "Callable[[MergeState], None]":
        """The function, imported if it is given by reference."""
        if not isinstance(self.function, str):
            return self.function
        function: Callable[[MergeState], None] = pkgutil.resolve_name(self.function)
        return function

    def run(self, merge: "MergeState") -> None:
        """Calibrate a merge in place. It must already be calibrated by `after`."""
        self.resolve()(merge)


AUTO = "auto"
CALIBRATIONS = {
    "batchnorm": Calibration(
        "hf_zipit.calibration.batchnorm:batchnorm",
        summary="re-estimate the running statistics of all batch norms",
    ),
    "repair": Calibration(
        "hf_zipit.calibration.repair:repair",
        summary="give every unit the mean and standard deviation of its parents' units, even without norms (REPAIR)",
    ),
    "refit": Calibration(
        "hf_zipit.calibration.refit.refit:refit",
        summary="fit layers and heads to the parents' outputs by ridge regression",
        refits=True,
    ),
    "refit-per-task": Calibration(
        "hf_zipit.calibration.refit.per_task:refit_per_task",
        summary="as refit, but fit the images of each task to the parent of that task only",
        refits=True,
    ),
    "refit-joint": Calibration(
        "hf_zipit.calibration.refit.joint:refit_joint",
        summary="refit, then fit the heads to have no opinion on images of other tasks, for the joint prediction",
        after="refit",
        joint=True,
        refits=True,
    ),
    "refit-heads": Calibration(
        "hf_zipit.calibration.refit.heads:refit_heads",
        summary="re-estimate the batch norms, then refit only the heads",
        after="batchnorm",
        refits=True,
    ),
    "repair-weights": Calibration(
        "hf_zipit.calibration.repair_weights:repair_weights",
        summary="as repair, without images: the variance that units lose is told from the weights (Fold-AR)",
        images=False,
    ),
    "none": Calibration("hf_zipit.calibration.none:none", summary="leave the merged model as it is", images=False),
}


def described() -> str:
    """All calibrations with their summaries for a help text, one paragraph each.

    >>> described().splitlines()[-1]
    '- none: leave the merged model as it is.'
    """
    automatic = f"- {AUTO}: refit-joint where it improves the joint prediction, else refit; none without images."
    return "\n\n".join([automatic, *(f"- {name}: {entry.summary}." for name, entry in CALIBRATIONS.items())])


def stages_of(name: str) -> list[str]:
    """A calibration and those that run before it, in the order in which they run.

    >>> stages_of("refit-joint")
    ['refit', 'refit-joint']
    """
    before = CALIBRATIONS[name].after
    return [*(stages_of(before) if before else []), name]


def reads_images(name: str) -> bool:
    """Whether a calibration reads images; one that is yet to be chosen may."""
    return name == AUTO or any(CALIBRATIONS[stage].images for stage in stages_of(name))


def check_calibration(name: str) -> None:
    """Refuse an unknown calibration.

    Raises:
        OptionError: no calibration has this name.
    """
    if name != AUTO and name not in CALIBRATIONS:
        raise OptionError(f"unknown calibration '{name}'; calibrations: {', '.join([AUTO, *CALIBRATIONS])}")
