"""A second refit of the heads, for the joint prediction over the classes of all tasks."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hf_zipit.calibration.batchnorm import renew_norms
from hf_zipit.calibration.merge_state import MergeState
from hf_zipit.calibration.refit.classifiers import Classifier, Student, are_last, last_layers, read_opinions
from hf_zipit.calibration.refit.foreign import fit_opinions
from hf_zipit.calibration.refit.refit import refit
from hf_zipit.calibration.refit.tracks import network_of
from hf_zipit.data.batches import Passes
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.running import logits_of, working_copy
from hf_zipit.sources.source import Source
from hf_zipit.specs.spaces import Binding

_log = logging.getLogger("hf_zipit")
ONE_SET = "it needs one data set per model, to know which images are foreign to a head"
FEW = "it needs two images or more of each data set"
NOT_LINEAR = "the heads do not end in linear layers"


@torch.no_grad()
def refit_joint(merge: MergeState) -> None:
    """After a refit, fit the classifiers of all heads for the joint prediction, which compares their confidence.

    A head is as sure of itself on an image of another task as on its own. With one data set per model it is known
    which images are foreign to it. The classifier of each head is fitted to its parent's logits on its own images, and
    to logits that are all equal on foreign ones: see `fit_opinions`. This trades a little accuracy within the tasks
    for more across them. Source: our own.

    With a single data set, each head is refitted to the mean of its parent and a copy with batch norms renewed on all
    images, which is less sure of itself. Models without batch norms then stay as they are, and a warning says so.
    """
    merged = working_copy(merge.model, merge.passes.device)
    teachers = [working_copy(network_of(parent), merge.passes.device) for parent in merge.parents]
    classifiers = _in_merge(merge, merged)
    reason = _fit(classifiers, lambda pixels: logits_of(merged(pixels)), teachers, merge.passes, merge.seed)
    if reason is None:
        merge.model.load_state_dict(merged.state_dict())
    elif all(renew_norms(teacher, merge.passes) for teacher in teachers):
        level = logging.INFO if reason == ONE_SET else logging.WARNING
        _log.log(level, "refit-joint only fits the heads to parents with batch norms renewed on all images: %s", reason)
        refit(merge, trunk=False, extra_teachers=teachers)
    else:
        _log.warning(
            "refit-joint is the same as --calibrate refit here: %s, and the models have no batch norms to renew",
            reason,
        )


@torch.no_grad()
def refit_ensemble(parents: Sequence[Source], binding: Binding, passes: Passes, seed: int) -> list[nn.Module] | None:
    """Copies of plain classifiers whose own classifiers are fitted as `refit_joint` fits those of a merge.

    Args:
        parents: the models, of one task each; they are not changed.
        binding: their spec.
        passes: the images.
        seed: as that of a merge.

    Returns:
        One network for each parent, or `None` if there is not one data set for each, or a classifier is not linear.
    """
    nets = [working_copy(parent.model, passes.device) for parent in parents]
    sizes = [tuple(len(labels) for _, labels in parent.tasks) for parent in parents]
    classifiers = [Classifier(last_layers(net, binding), k, sizes[k]) for k, net in enumerate(nets)]

    def student(pixels: Tensor) -> Tensor:
        return torch.cat([logits_of(net(pixels)) for net in nets], 1)

    return nets if _fit(classifiers, student, nets, passes, seed) is None else None


def _fit(
    classifiers: Sequence[Classifier], student: Student, teachers: Sequence[nn.Module], passes: Passes, seed: int
) -> str | None:
    """Fit classifiers to their parents' opinions, in place.

    Returns:
        Why they cannot be fitted; `None` if they were.
    """
    if len(passes.images) != len(teachers) or len(teachers) == 1:
        return ONE_SET
    if min(map(len, passes.images)) < 2:
        return FEW
    pixels = passes.images[0][0][None].to(passes.device, next(teachers[0].parameters()).dtype)
    if not all(one.layers for one in classifiers) or not are_last(classifiers, student, pixels):
        return NOT_LINEAR
    opinions, origin = read_opinions(classifiers, student, teachers, passes)
    weight, solutions = fit_opinions(opinions, origin, seed)
    _log.info("images of other tasks weigh %g in the fit of the classifiers", weight)
    for one, solution in zip(classifiers, solutions, strict=True):
        one.write(*solution)
    return None


def _in_merge(merge: MergeState, model: nn.Module) -> list[Classifier]:
    """The classifiers of a merged model, or of a copy of one: of each head, or, without heads, of each parent."""
    assert isinstance(model, ZipItForImageClassification)
    binding = merge.plan.binding
    heads = iter(model.heads)
    out = []
    first = 0
    for k, parent in enumerate(merge.parents):
        column = 0
        for branch in parent.parts:
            sizes = tuple(len(labels) for _, labels in branch.tasks)
            net = model.trunk if merge.plan.whole else next(heads)
            out.append(Classifier(last_layers(net, binding), k, sizes, first if merge.plan.whole else 0, column))
            first += sum(sizes)
            column += sum(sizes)
    return out
