"""Targets that cannot be what the user means: classes that a model does not have, masks without classes."""

from torch import Tensor

from hf_zipit.data.targets import IGNORED
from hf_zipit.errors import DataError
from hf_zipit.evaluation.metrics import counts


class SeenTargets:
    """What the targets of a task hold, to refuse those that cannot be what the user means."""

    def __init__(self, task: str) -> None:
        self.task = task
        self.highest = -1
        self.ignored = False

    def add(self, output: Tensor, target: Tensor) -> None:
        """Add a batch.

        Raises:
            DataError: it holds a class that the model does not have.
        """
        if not output.isfinite().all():
            raise DataError(f"the outputs of task '{self.task}' are not finite; check its weights")
        if target.is_floating_point():
            self.highest = max(self.highest, 1)
            return
        counted = counts(target)
        known = target[counted]
        self.ignored |= len(known) < target.numel()
        if not known.numel():
            return
        low, high = int(known.min()), int(known.max())
        classes = max(output.shape[1], 2)
        if low < 0 or high >= classes:
            odd = low if low < 0 else high
            raise DataError(
                f"task '{self.task}': the targets hold the class {odd}, and the model has the classes 0 to "
                f"{classes - 1}"
            )
        self.highest = max(self.highest, high)

    def check(self) -> None:
        """Refuse targets of which nothing, or only class 0, counts beside pixels that are left out.

        Raises:
            DataError: they are masks of 0 and 255, for example.
        """
        if self.ignored and self.highest < 1:
            raise DataError(
                f"task '{self.task}': its masks hold nothing but 0 and {IGNORED}, and {IGNORED} is left out; number "
                "the classes from 0"
            )
