"""The merged model from its parts: which steps are trunk and head, its config, its state, and the module itself."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_zipit.assembly.plan import Plan, places
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification, resize
from hf_zipit.sources.source import Source
from hf_zipit.specs.cuts import channel_axis
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states, unmerge_reads


def assemble(
    sources: Sequence[Source], names: Sequence[str], plan: Plan, matches: Mapping[str, Match], about: dict[str, Any]
) -> ZipItForImageClassification:
    """The merged model, before calibration; `about` says how it was made."""
    config = config_of(sources, names, plan)
    config.zipit = about
    return build(config, sources, merged_state(sources, plan, matches))


def config_of(sources: Sequence[Source], names: Sequence[str], plan: Plan) -> ZipItConfig:
    """What is needed to rebuild the merged model, but for its shapes."""
    parts = [(i, branch) for i, source in enumerate(sources) for branch in source.parts]
    tasks = [(i, b, labels) for b, (i, branch) in enumerate(parts) for _, labels in branch.tasks]
    heads = [
        {"task": name, "id2label": dict(enumerate(labels)), "source": i, "branch": 0 if plan.whole else b}
        for name, (i, b, labels) in zip(names, tasks, strict=True)
    ]
    first, binding = sources[0], plan.binding
    unmerge = None
    if not plan.whole and plan.gathers:
        axis = channel_axis(first.model, binding, plan.depth, first.input_size)
        unmerge = {"axis": axis, "size": binding.spaces[plan.crossing].size}
    config = ZipItConfig(
        backbone=first.backbone,
        owns={step: list(mine) for step, mine in binding.owns.items() if mine != (step,)},
        trunk=binding.calls(plan.trunk),
        head=binding.calls(plan.head),
        cut=plan.cut,
        unmerge=unmerge,
        heads=heads,
    )
    if first.settings:
        config.pretrained_cfg = {**first.settings, "num_classes": sum(len(s.labels) for s in sources)}
        config.image_processor_type = "TimmWrapperImageProcessor"
    return config


def merged_state(sources: Sequence[Source], plan: Plan, matches: Mapping[str, Match]) -> dict[str, Tensor]:
    """The merged model's state dict: merged trunk, each task's own head, and how it reads the trunk."""
    states = [source.model.state_dict() for source in sources]
    binding = plan.binding
    trunk = merge_states(states, binding, matches, plan.touched(states[0]))
    out = {f"trunk.{name}": value for name, value in trunk.items()}
    if plan.whole:
        parts = [unmerge_reads(s, binding, matches, binding.classifier, k) for k, s in enumerate(states)]
        return out | {f"trunk.{name}": torch.cat([part[name] for part in parts]) for name in binding.classifier}
    branches = [(model, branch) for model, source in enumerate(sources) for branch in source.parts]
    for number, (model, branch) in enumerate(branches):
        names = binding.under(plan.head, branch.state)
        match = matches[plan.crossing]
        labels = match.of(model) if branch.gather is None else match.of(model)[branch.gather]
        if plan.gathers:
            head = {name: branch.state[name].clone() for name in names}
            out[f"unmerge.{number}.index"] = places(labels, match.width)
        else:
            mine = {plan.crossing: Match(labels, (len(labels),), match.width)}
            head = unmerge_reads(branch.state, binding, mine, names, 0)
        out.update({f"heads.{number}.{name}": value for name, value in head.items()})
    return out


def build(config: ZipItConfig, sources: Sequence[Source], state: Mapping[str, Tensor]) -> ZipItForImageClassification:
    """The merged model on the sources' own architecture, with the config that builds it again."""
    with torch.device("meta"):
        planned = ZipItForImageClassification(config).state_dict()
    config.shapes = {k: list(v.shape) for k, v in state.items() if k in planned and v.shape != planned[k].shape}
    model = ZipItForImageClassification(
        config, [copy.deepcopy(source.model).eval() for source in sources for _ in source.parts]
    )
    for name, value in model.state_dict().items():  # classifiers of other sizes, and of the classes of all tasks
        if value.shape != state[name].shape:
            resize(model, name, list(state[name].shape))
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True)
    model.eval()
    return model
