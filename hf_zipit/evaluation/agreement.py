"""How often models answer as their parents do, on images without labels, and how much accuracy that lets expect."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_zipit.data.batches import Passes
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.running import logits_of, working_copy
from hf_zipit.sources.source import Source

# a parent's logits are divided by these, so that it is as sure of itself as it is accurate
TEMPERATURES = tuple(2.0 ** (step / 4) for step in range(-8, 25))


@dataclass
class Answers:
    """Sums over images, each counted for one task: the one whose parent is surest of it, of those that it may be of.

    Images on which some output is not finite count for none.

    Attributes:
        images: for each task the images that count for it, `(T,)`.
        sure: for each task the parents' probability of their own answer, at every temperature, `(T, K)`.
        classes: for each task how often its parent gives each answer, `(classes,)`.
        same: for each model and task, how often the answer is the parent's, `(T,)`.
        given: for each model and task, the parent's probability of the model's answer, `(T, K)`.
        joint: for each model, how often its answer among the classes of all tasks is that of the parents together.
    """

    images: Tensor
    sure: Tensor
    classes: list[Tensor]
    same: dict[str, Tensor]
    given: dict[str, Tensor]
    joint: dict[str, Tensor]

    def agreement(self, model: str) -> Tensor:
        """For each task, the share of its images with the parent's answer, `(T,)`; NaN without images."""
        return self.same[model] / self.images

    def chance(self) -> Tensor:
        """For each task, the agreement of the one answer that the parent gives most often, `(T,)`."""
        return torch.stack([counts.max() for counts in self.classes]) / self.images

    def kept(self, model: str, accuracies: Sequence[float | None]) -> Tensor:
        """For each task, the share of its parent's accuracy that a model should keep, `(T,)`.

        If a parent is right about an answer as often as it is sure of it, this share is the mean of the parent's
        probabilities of the model's answers over that of its own. Where the accuracy of a parent is known, its logits
        are first brought to the temperature at which it is as sure as it is accurate.

        Args:
            model: the name of the model.
            accuracies: of the parent of every task, or `None`.
        """
        plain = TEMPERATURES.index(1.0)
        level = self.sure / self.images[:, None]
        best = [plain if a is None else int((level[t] - a).abs().argmin()) for t, a in enumerate(accuracies)]
        rows = torch.arange(len(best))
        return self.given[model][rows, best] / self.sure[rows, best]


@torch.no_grad()
def compare_answers(models: Mapping[str, ZipItPreTrainedModel], parents: Sequence[Source], passes: Passes) -> Answers:
    """Compare the answers of models with those of the parents of their tasks, in one pass.

    Args:
        models: merges of the same parents. Every task predicts one class of several.
        parents: the models that were merged; one that is a merge itself has several tasks.
        passes: over the images, of one data set, or of one for each parent. Every process reads its share, and all
            return the same.
    """
    tasks = [task for parent in parents for task in parent.alone()]
    owner = torch.tensor([k for k, parent in enumerate(parents) for _ in parent.tasks])
    nets = [working_copy(source.model, passes.device) for source in tasks]
    copies = {name: working_copy(model, passes.device) for name, model in models.items()}
    temperatures = torch.tensor(TEMPERATURES, dtype=torch.float64)
    found = Answers(
        torch.zeros(len(tasks), dtype=torch.float64),
        torch.zeros(len(tasks), len(TEMPERATURES), dtype=torch.float64),
        [torch.zeros(len(source.labels), dtype=torch.float64) for source in tasks],
        {name: torch.zeros(len(tasks), dtype=torch.float64) for name in models},
        {name: torch.zeros(len(tasks), len(TEMPERATURES), dtype=torch.float64) for name in models},
        {name: torch.zeros(1, dtype=torch.float64) for name in models},
    )
    dtype = next(nets[0].parameters()).dtype
    for pixels, origin in passes("Comparing answers"):
        pixels = pixels.to(passes.device, dtype, memory_format=torch.channels_last)
        logits = [logits_of(net(pixels)).double().cpu() for net in nets]
        answers = {name: list(copy(pixels).task_logits.values()) for name, copy in copies.items()}
        task = _task_of(logits, owner, origin if len(passes.images) > 1 else None)
        every = [one.cpu() for one in (*logits, *(each for mine in answers.values() for each in mine))]
        task[~torch.cat(every, 1).isfinite().all(1)] = -1  # counts for none
        for t, mine in enumerate(logits):
            chosen = task == t
            chances = (mine[chosen, :, None] / temperatures).softmax(1)
            own = mine[chosen].argmax(1)
            found.images[t] += chosen.sum()
            found.sure[t] += chances.amax(1).sum(0)
            found.classes[t] += own.bincount(minlength=mine.shape[1])
            for name in models:
                other = answers[name][t].cpu()[chosen].argmax(1)
                found.same[name][t] += (other == own).sum()
                found.given[name][t] += chances[torch.arange(len(other)), other].sum(0)
        together = _joint(logits)
        for name in models:
            same = _joint(answers[name]) == together
            found.joint[name] += (same & (task >= 0)).sum()
    return _everywhere(found, passes)


def _task_of(logits: Sequence[Tensor], owner: Tensor, origin: Tensor | None) -> Tensor:
    """The task of every image, `(B,)`: the one whose parent is surest of it, among those of its data set."""
    sure = torch.stack([mine.softmax(1).amax(1) for mine in logits], 1)
    if origin is not None:
        sure = sure.masked_fill(owner[None] != origin[:, None], -1)
    return sure.argmax(1)


def _joint(logits: Sequence[Tensor]) -> Tensor:
    """The answers among the classes of all tasks, `(B,)`."""
    return torch.cat([mine.double().cpu().log_softmax(1) for mine in logits], 1).argmax(1)


def _everywhere(found: Answers, passes: Passes) -> Answers:
    """The sums over all processes."""
    if passes.accelerator.num_processes == 1:
        return found

    def reduced(value: Tensor) -> Tensor:
        total: Tensor = passes.accelerator.reduce(value.to(passes.device), "sum")
        return total.cpu()

    return Answers(
        reduced(found.images),
        reduced(found.sure),
        [reduced(value) for value in found.classes],
        *({name: reduced(value) for name, value in part.items()} for part in (found.same, found.given, found.joint)),
    )
