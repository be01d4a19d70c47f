"""The verdict on a merge: how near it is to its parents, beside one parent's trunk and chance, and what to try next."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hf_zipit.data.draw import FEWEST
from hf_zipit.errors import OutputError
from hf_zipit.text import percent, table

FEW = 10  # with fewer images of a task than this, nothing is known of it
MARGIN = 0.01  # of the accuracy kept, by which a merge must be better than one parent's trunk to be worth it


@dataclass(frozen=True)
class TaskVerdict:
    """How a task of a merge fares.

    Attributes:
        images: held-out images that count for it.
        agreement: share of them that are answered as the parent does, or, for outputs that are no classes, the share of
            the variance of the parent's outputs that is met.
        control: the same for the best trunk of one parent; `None` if there is one parent only.
        chance: the same for the parent's most frequent answer; `None` if the outputs are no classes.
        kept: share of the parent's accuracy that the merge should keep.
        expected: accuracy to expect; `None` if that of the parent is unknown.
    """

    images: int
    agreement: float | None
    control: float | None
    chance: float | None
    kept: float | None
    expected: float | None


@dataclass(frozen=True)
class Verdict:
    """How good a merge is.

    Attributes:
        images: held-out images.
        tasks: of every task.
        joint: share of the images where the answer among the classes of all tasks is that of all parents together.
        control: the parent whose trunk does best alone, with the heads of all tasks fitted to it; `None` of one parent.
        kept: mean share of the parents' accuracy that the merge should keep.
        control_kept: the same for that trunk.
        advice: what to do about it, one sentence each; none if all is well.
    """

    images: int
    tasks: dict[str, TaskVerdict]
    joint: float | None
    control: str | None
    kept: float
    control_kept: float | None
    advice: tuple[str, ...]

    @property
    def worth_it(self) -> bool | None:
        """Whether the merge is better than one parent's trunk; `None` if there is one parent only."""
        return None if self.control_kept is None else self.kept >= self.control_kept + MARGIN

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON and the config of the merge."""
        return {**asdict(self), "advice": list(self.advice), "worth_it": self.worth_it}


def check_required(verdict: Mapping[str, Any] | None, share: float) -> None:
    """Refuse a merge that answers less often as its parents do than is required.

    Args:
        verdict: as `Verdict.to_dict` gives it; `None` if there is none.
        share: of the held-out images, for every task.

    Raises:
        OutputError: a task answers as its parent on a smaller share, or nothing is known of it.
    """
    if verdict is None:
        raise OutputError(
            f"{share:g} agreement is required, but no images are held out: give {FEWEST} of each data set or more"
        )
    found = {task: one["agreement"] if one["images"] >= FEW else None for task, one in verdict["tasks"].items()}
    missed = {task: value for task, value in found.items() if value is None or value < share}
    if missed:
        shown = ", ".join(f"{task} {'unknown' if value is None else f'{value:.3f}'}" for task, value in missed.items())
        raise OutputError(f"{share:g} agreement with the parents is required, found: {shown}; nothing was written")


def verdict_text(verdict: Mapping[str, Any]) -> str:
    """A recorded verdict as text: a table, and a summary.

    Args:
        verdict: as `Verdict.to_dict` gives it.
    """
    columns = {
        "agreement": "agrees %",
        "control": f"trunk of {verdict['control']} %",
        "chance": "chance %",
        "kept": "keeps %",
        "expected": "accuracy %",
    }
    tasks = verdict["tasks"]
    shown = [key for key in columns if any(one[key] is not None for one in tasks.values())]
    rows = [[task, str(one["images"]), *(percent(one[key]) for key in shown)] for task, one in tasks.items()]
    kept = percent(verdict["kept"])
    summary = f"The smaller model should keep {kept} % of the accuracy of the model that it was made of."
    if verdict["control"] is not None:
        summary = (
            f"The merge should keep {kept} % of its parents' accuracy; the trunk of {verdict['control']} alone, with "
            f"the heads of all tasks fitted to it, {percent(verdict['control_kept'])} %."
        )
    head = ["held out", "images", *(columns[key] for key in shown)]
    return f"{table(head, rows)}\n\n{summary}"
