"""The merged model of sources of several classes from its parts: its config, its state, and the module itself."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_zipit.assembly.plan import Plan, places
from hf_zipit.backbones.share import Shared
from hf_zipit.costs import count_flops
from hf_zipit.errors import OptionError
from hf_zipit.matching.methods import Options
from hf_zipit.models.configuration_zipit_model import ZipItModelConfig
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.models.resume import Steps, weights_of
from hf_zipit.sources.source import Source
from hf_zipit.sources.whole_models import dense_processor
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states

DENSE = ("image-segmentation", "depth-estimation")


def plan_shared(shared: Shared, options: Options, cut: str | None) -> Plan:
    """Where a merge of models around a backbone is cut.

    Raises:
        OptionError: unknown cut, or another width than the backbone's.
    """
    if options.width != 1 or options.flops_budget is not None:
        raise OptionError("models with other parts around a backbone are merged at its own width only")
    return Plan(shared.binding, shared.depth(cut), cut)


def cost(shared: Shared, plan: Plan) -> tuple[int, int]:
    """FLOPs of one image with all heads, and parameters, of the merge of such a plan."""
    size, view = shared.sources[0].input_size, shared.sources[shared.reference].model
    parts = [Steps({step: view.get_submodule(step) for step in plan.trunk}), *(s.model for s in shared.wholes)]
    trunk, *wholes = [(count_flops(part, size), sum(p.numel() for p in part.parameters())) for part in parts]
    again = len(wholes) - 1
    return sum(f for f, _ in wholes) - again * trunk[0], sum(n for _, n in wholes) - again * trunk[1]


def assemble(
    shared: Shared, names: Sequence[str], plan: Plan, matches: Mapping[str, Match], about: dict[str, Any]
) -> ZipItModel:
    """The merged model, before calibration; `about` says how it was made."""
    config = config_of(shared, names, plan)
    config.zipit = about
    return build(config, shared, merged_state(shared, plan, matches))


def config_of(shared: Shared, names: Sequence[str], plan: Plan) -> ZipItModelConfig:
    """What is needed to rebuild the merged model, but for its shapes."""
    heads = [
        {
            "task": name,
            "kind": source.kind,
            "id2label": dict(enumerate(source.labels)),
            "source": number,
            "model": _description(source),
            "steps": list(shared.openings[number].steps[: plan.depth]),
            "fields": dict(shared.openings[number].fields),
            "taps": [
                {"step": step, "axis": axis, "size": size} for step, _, axis, size in shared.taps(number, plan.depth)
            ],
        }
        for number, (name, source) in enumerate(zip(names, shared.wholes, strict=True))
    ]
    config = ZipItModelConfig(
        backbone=_description(shared.wholes[shared.reference]),
        backbone_path=shared.path,
        input_size=list(shared.sources[0].input_size),
        trunk=list(plan.trunk),
        cut=plan.cut,
        heads=heads,
    )
    settings = [source.settings for source in shared.wholes if source.settings]
    if settings:
        if any(source.kind in DENSE for source in shared.wholes):
            config.preprocessing = settings[0]  # under timm's name transformers would read no other processor's file
        else:
            config.pretrained_cfg, config.image_processor_type = settings[0], "TimmWrapperImageProcessor"
    return config


def _description(source: Source) -> dict[str, Any]:
    """How the whole model of a task is built."""
    return {**source.backbone, "num_classes": len(source.labels)}


def merged_state(shared: Shared, plan: Plan, matches: Mapping[str, Match]) -> dict[str, Tensor]:
    """The merged model's state dict: merged trunk, what is left of each task's model, and what it reads."""
    states = [source.model.state_dict() for source in shared.sources]
    first = {name: states[shared.reference][name] for name in plan.touched(states[shared.reference])}
    common = [name for name in first if all(name in state for state in states)]  # others are read by no forward
    trunk = first | merge_states(states, plan.binding, matches, common)
    out = {f"trunk.{name}": value.clone() for name, value in trunk.items()}
    for number, source in enumerate(shared.wholes):
        steps = shared.openings[number].steps[: plan.depth]
        done = {name for step in steps for name in weights_of(source.model, step)}
        rest = {name: value for name, value in source.model.state_dict().items() if name not in done}
        out |= {f"heads.{number}.{name}": value.clone() for name, value in rest.items()}
        for step, space, _, _ in shared.taps(number, plan.depth):
            out[f"unmerge.{number}.{step}.index"] = places(matches[space].of(number), matches[space].width)
    return out


def build(config: ZipItModelConfig, shared: Shared, state: Mapping[str, Tensor]) -> ZipItModel:
    """The merged model on the sources' own architectures, with the config that builds it again."""
    view = shared.sources[shared.reference].model
    trunk = Steps({step: copy.deepcopy(view.get_submodule(step)).eval() for step in config.trunk or []})
    known = {f"trunk.{name}": value.shape for name, value in trunk.state_dict().items()}
    config.shapes = {name: list(state[name].shape) for name, shape in known.items() if state[name].shape != shape}
    model = ZipItModel(config, trunk, [copy.deepcopy(source.model).eval() for source in shared.wholes])
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True)
    if config.preprocessing:  # timm's own processor does not undo what it does to masks
        model.image_processor = dense_processor(config.input_size or (), config.preprocessing)
    model.eval()
    return model
