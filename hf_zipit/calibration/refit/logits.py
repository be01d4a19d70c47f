"""Classifiers of one class of several: what softmax ignores, the mean over the classes, is no part of their targets."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from hf_zipit.calibration.refit.layers import Layer
from hf_zipit.sources.source import Branch
from hf_zipit.specs.spaces import Binding

Target = Callable[[Sequence[Tensor], Tensor], Tensor]  # outputs of the parents, task of every image -> `(B, P, m)`
Span = tuple[int, int]  # the first class of a task among the columns of the logits, and the one behind its last


def centre_logits(
    net: nn.Module, targets: Mapping[Layer, Target], binding: Binding, branches: Sequence[Branch]
) -> dict[Layer, Target]:
    """The targets of some layers, where those of classifiers lose their mean over the classes of each task.

    So do the classifiers themselves, in place. What they predict stays the same.

    Args:
        net: the network of the layers, with the parameter names of the binding.
        targets: of these layers.
        binding: names the parameters whose width is the number of classes.
        branches: whose logits lie side by side in the output of a classifier.
    """
    spans = softmax_spans(branches)
    out = dict(targets)
    for layer, target in targets.items():
        if _is_classifier(net, layer, binding, branches):
            _centre(net, layer, spans)
            out[layer] = CentredLogits(target, spans)
    return out


def softmax_spans(branches: Sequence[Branch]) -> list[Span]:
    """Where the classes of those tasks lie that predict one class of several.

    Args:
        branches: whose logits lie side by side.

    >>> softmax_spans([Branch((("pets", ["cat", "dog"]),), {}), Branch((("cars", ["van", "bus"]),), {})])
    [(0, 2), (2, 4)]
    """
    spans = []
    start = 0
    for branch in branches:
        problems = branch.problems or ("single-label",) * len(branch.tasks)
        for (_, labels), problem in zip(branch.tasks, problems, strict=True):
            if problem == "single-label" and len(labels) > 1:
                spans.append((start, start + len(labels)))
            start += len(labels)
    return spans


def centred(values: Tensor, spans: Sequence[Span]) -> Tensor:
    """Values without their mean over the classes of each task, along the last axis."""
    out = values.clone()
    for start, stop in spans:
        out[..., start:stop] -= values[..., start:stop].mean(-1, keepdim=True)
    return out


class CentredLogits:
    """The target of a classifier: its logits, without their mean over the classes of each task.

    Args:
        target: the target of the logits.
        spans: where the classes of each task lie.
    """

    def __init__(self, target: Target, spans: Sequence[Span]) -> None:
        self.target = target
        self.spans = spans

    def __call__(self, outputs: Sequence[Tensor], task: Tensor) -> Tensor:
        """As the target of the logits."""
        return centred(self.target(outputs, task), self.spans)


def _centre(net: nn.Module, layer: Layer, spans: Sequence[Span]) -> None:
    """Take the mean over the classes of each task out of a classifier's own weights, in place."""
    for affine in layer.maps:
        for parameter in net.get_submodule(affine.module).parameters(recurse=False):
            parameter.data.copy_(centred(parameter.detach().movedim(0, -1), spans).movedim(-1, 0))


def _is_classifier(net: nn.Module, layer: Layer, binding: Binding, branches: Sequence[Branch]) -> bool:
    """Whether a layer puts out the logits of these branches, with nothing between it and them."""
    classes = sum(len(labels) for branch in branches for _, labels in branch.tasks)
    names = [f"{affine.module}.weight" for affine in layer.maps]
    plain = all(affine.norm is None and affine.scale is None for affine in layer.maps)
    return plain and all(name in binding.classifier and len(net.get_parameter(name)) == classes for name in names)
