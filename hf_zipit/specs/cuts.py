"""Where a chain of steps may be cut: names and labels of cuts, and the channel axis at a cut."""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from hf_zipit.errors import OptionError
from hf_zipit.specs.spaces import Binding


def resolve_cut(binding: Binding, cut: str | None) -> int:
    """The number of trunk steps for a cut.

    Args:
        binding: The spec bound to the model.
        cut: Name of the last step of the trunk (`layer2.1`), or of a stage that ends with it (`layer2`). `None` is the
            last legal cut, after which only the classifier is left.

    Returns:
        The number of steps; 0 without a chain, where only a full merge is possible.

    Raises:
        OptionError: unknown cut; the message lists the legal ones.
    """
    cuts = binding.cuts
    if cut is None:
        return binding.steps.index(cuts[-1]) + 1 if cuts else 0
    if not cuts:
        raise OptionError(f"the spec {binding.spec.family} has no chain: these models can only be merged fully")
    inside = [step for step in cuts if step == cut or step.startswith(cut + ".")]
    if not inside:
        raise OptionError(f"unknown cut '{cut}'; legal cuts: {', '.join(cut_labels(cut_names(binding)))}")
    return binding.steps.index(inside[-1]) + 1


def cut_names(binding: Binding) -> dict[str, str | None]:
    """Every legal cut by its step, with the stage that ends there, if any. `resolve_cut` takes both names."""
    names: dict[str, str | None] = {}
    for i, step in enumerate(binding.cuts):
        stage = "" if ":" in step else step.rpartition(".")[0]
        last = bool(stage) and not any(s.startswith(stage + ".") for s in binding.cuts[i + 1 :])
        names[step] = stage if last else None
    return names


def cut_labels(names: Mapping[str, str | None]) -> list[str]:
    """Labels of cuts that show both names, as in `layer2.1 = layer2`."""
    return [f"{step} = {stage}" if stage else step for step, stage in names.items()]


@torch.no_grad()
def channel_axis(model: nn.Module, binding: Binding, depth: int, input_size: tuple[int, int, int]) -> int:
    """The axis over which units run in the output of the first `depth` steps: 1 or -1.

    Args:
        model: The model; a copy on the meta device is run.
        binding: The spec bound to the model.
        depth: Number of steps to run.
        input_size: Channels, height and width of an image.
    """
    net = copy.deepcopy(model).to("meta").eval()
    value = torch.empty(1, *input_size, device="meta")
    for run in binding.runs(net, input_size[1:])[:depth]:
        value = run(value)
    return binding.axis(value.ndim)
