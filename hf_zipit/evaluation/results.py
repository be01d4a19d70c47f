"""Results of evaluations: one row per model, whatever the metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from hf_zipit.assembly.parents import Merged
from hf_zipit.costs import Cost
from hf_zipit.evaluation.metrics import LOWER_IS_BETTER
from hf_zipit.sources.source import Source


@dataclass(frozen=True)
class Result:
    """One row of a table. Accuracies and shares are fractions; FLOPs are of one forward pass of one image.

    Attributes:
        model: `merged`, the method of a merge, `parent:TASK` or `ensemble`.
        flops: for all its tasks.
        parameters: for all its tasks.
        tasks: one score per task: the accuracy on the task's images among the task's classes. Without labels, it is the
            agreement with the parent. For tasks that are not all measured by accuracy, it is each task's first metric.
        average: the mean over tasks; for tasks with outputs of different kinds, the mean ratio to the parents' scores.
        joint: the accuracy on all tasks' images among all classes (softmax per task, argmax over all; ZipIt!,
            section 5). `None` unless every task predicts one class of several.
        images: the number of images that each accuracy is measured on.
        distance: squared distance of the outputs from the parents', as a share of the parents' variance.
        scores: task -> metric -> value, for tasks with outputs of different kinds.
        correlation: of merged units with the parents' units, by space.
        seconds: time of the merge, in seconds.
        latency: milliseconds of a forward pass for all its tasks, by the number of images in the batch.
        settings: the options that distinguish this merge, by name; of an ensemble, how it is calibrated, if it is.
        error: why the merge could not be made; then nothing was measured.
        pairs: of a mean over several pairs of models: the number of pairs.
        deviation: of such a mean: the sample standard deviation of `average`, `joint` and `distance`.
    """

    model: str
    flops: int
    parameters: int
    tasks: dict[str, float] = field(default_factory=dict)
    average: float | None = None
    joint: float | None = None
    distance: float | None = None
    images: dict[str, int] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    correlation: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    latency: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    pairs: int | None = None
    deviation: dict[str, float] = field(default_factory=dict)

    @property
    def merged(self) -> bool:
        """Whether the model is a merge, rather than a parent or the ensemble."""
        return self.model != "ensemble" and not self.model.startswith("parent:")

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON, without values that were not measured."""
        return {key: value for key, value in asdict(self).items() if value is not None and value != {}}


class Evaluation(Protocol):
    """A way to measure merges, their parents, and the parents' ensemble.

    Attributes:
        shared: whether the images are divided among all processes; otherwise the main process evaluates alone.
    """

    shared: bool

    def result(self, name: str, merged: Merged) -> Result:
        """Measure one merge."""

    def results(self, merged: Merged, parents: Sequence[Source]) -> list[Result]:
        """Measure a merge beside its parents and their ensemble."""

    def of_parents(self, parents: Sequence[Source]) -> list[Result]:
        """Measure every parent, and their ensemble."""

    def fingerprint(self) -> Any:
        """Identifies the evaluation data, as plain values."""


def ensemble_cost(costs: Sequence[Cost], networks: Sequence[object]) -> Cost:
    """The total cost of the parents; a network that serves several tasks is counted once.

    Args:
        costs: the cost of each parent.
        networks: the network of each parent; the same object for parents that share one.
    """
    each = {id(network): cost for network, cost in zip(networks, costs, strict=True)}
    return Cost(sum(cost.flops for cost in each.values()), sum(cost.parameters for cost in each.values()))


def mean(values: Mapping[str, float]) -> float:
    """The mean of the values."""
    return sum(values.values()) / len(values)


def relative(row: Result, parents: Sequence[Result]) -> Result:
    """The row with its average relative to the parents: the mean ratio of its first metrics to theirs; 1 is as good.

    For a metric where lower is better, the ratio is the parent's value over the row's.

    Args:
        row: the row of a merge, a parent or the ensemble.
        parents: the rows of the parents; others are ignored.
    """
    alone = {task: value for parent in parents if not parent.merged for task, value in parent.tasks.items()}
    shares = []
    for task, value in row.tasks.items():
        if task in alone:
            metric = next(iter(row.scores[task]))
            above, below = (alone[task], value) if metric in LOWER_IS_BETTER else (value, alone[task])
            shares.append(above / below if below else float("nan"))
    return replace(row, average=sum(shares) / len(shares) if shares else None)
