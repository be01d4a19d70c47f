"""Merging models of any class around one backbone: each task's output keeps the form it had in the task's own model."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_zipit.assembly.parents import Parents, mask_settings, plain_attributes, stated
from hf_zipit.backbones.share import Shared, share
from hf_zipit.costs import Cost, Cut, LayerCosts, count_flops, count_parameters, cut_costs, resized
from hf_zipit.errors import OptionError
from hf_zipit.models.configuration_zipit_model import ZipItModelConfig
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.models.resume import Steps, weights_of
from hf_zipit.sources.processors import dense_processor
from hf_zipit.sources.source import Source
from hf_zipit.specs.plan import Plan, gathered
from hf_zipit.specs.spaces import Binding
from hf_zipit.transform.heads import Matches
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states

DENSE = ("image-segmentation", "depth-estimation")


@dataclass(frozen=True, eq=False)
class Multitask(Parents):
    """Models that share a backbone and have different layers around it; see `Parents`.

    Attributes:
        shared: where the backbone is in each model, and which of its tensors the rest of the model reads.
    """

    shared: Shared
    joint = False
    runs = True
    config_class = ZipItModelConfig

    @classmethod
    def open(cls, sources: Sequence[Source], spec: str | Path | None = None, backbone: str | None = None) -> "Parents":
        """Find the backbone steps that the models share."""
        return cls(share(sources, spec, backbone))

    @property
    def binding(self) -> Binding:  # type: ignore[override]
        """The spec of the shared steps."""
        return self.shared.binding

    @property
    def sources(self) -> Sequence[Source]:  # type: ignore[override]
        """The shared steps of every model, under one set of names."""
        return self.shared.sources

    @property
    def wholes(self) -> Sequence[Source]:  # type: ignore[override]
        """The models as they were given."""
        return self.shared.wholes

    @property
    def reference(self) -> Source:
        """The source whose parameter names the binding uses."""
        return self.sources[self.shared.reference]

    def depth(self, cut: str | None) -> int:
        """Number of merged steps up to a named cut; by default, up to the last legal one.

        Raises:
            OptionError: unknown cut; the message also says why no further steps can be merged.
        """
        try:
            return super().depth(cut)
        except OptionError as error:
            raise OptionError(f"{error}. No more can be merged: {self.shared.limit}") from None

    def gathers(self, plan: Plan) -> bool:
        """Always true: every head gathers its own model's units."""
        return True

    def gathered_spaces(self, plan: Plan) -> set[str]:
        """The spaces of which each head gathers its own model's units."""
        models = range(len(self.wholes))
        return {space for number in models for _, space, _, _ in self.shared.taps(number, plan.depth)}

    def layer_costs(self) -> LayerCosts:
        """FLOPs of a merge at any cut and widths."""
        classes = [1] * len(self.wholes)  # no joint classifier grows with the tasks
        wholes = [cost.flops for cost in self.costs]
        return LayerCosts(self.reference.model, self.binding, self.input_size, classes, wholes)

    def cut_costs(self) -> list[Cut]:
        """Costs of every legal cut of the first model. `space` lists the spaces of all tensors that its head reads.

        >>> [cut.space for cut in Multitask.open([load_source("user/segmenter")]).cut_costs()][-1]  # doctest: +SKIP
        'stem + layer1.0.out + layer2.0.out + layer3.0.out + layer4.0.out'
        """
        whole = self.costs[0]
        found = []
        for cut in cut_costs(self.sources[0].model, self.binding, self.input_size):
            read = dict.fromkeys(space for _, space, _, _ in self.shared.taps(0, self.depth(cut.name)))
            found.append(replace(cut, space=" + ".join(read), flops=whole.flops, parameters=whole.parameters))
        return found

    def cost(self, names: Sequence[str], plan: Plan) -> Cost:
        """FLOPs of one image with all heads, and parameters, of the planned merge."""
        view = self.reference.model
        own = Steps({step: view.get_submodule(step) for step in plan.trunk})
        merged = resized(own, self.binding, plan.ratios, attributes=plan.attributes)
        flops = sum(cost.flops for cost in self.costs) - len(self.wholes) * count_flops(own, self.input_size)
        parameters = sum(self._own_parameters(number, plan) for number in range(len(self.wholes)))
        return Cost(flops + count_flops(merged, self.input_size), parameters + count_parameters(merged))

    def _done(self, number: int, plan: Plan) -> set[str]:
        """The names of the tensors in a model that the trunk replaces; not every model has those of the reference."""
        steps = self.shared.prefixes[number].steps[: plan.depth]
        return {name for step in steps for name in weights_of(self.wholes[number].model, step)}

    def _own_parameters(self, number: int, plan: Plan) -> int:
        """The number of scalar parameters that a task keeps beside the trunk."""
        done = self._done(number, plan)
        model = self.wholes[number].model
        return sum(parameter.numel() for name, parameter in model.named_parameters() if name not in done)

    def config(self, names: Sequence[str], plan: Plan) -> ZipItModelConfig:
        """Everything needed to rebuild the merged model, except its shapes."""
        config = ZipItModelConfig(
            backbone=_description(self.wholes[self.shared.reference]),
            backbone_path=self.shared.path,
            input_size=list(self.input_size),
            trunk=list(plan.trunk),
            cut=plan.cut,
            attributes=plain_attributes(plan),
            heads=[self._head(number, name, plan) for number, name in enumerate(names)],
        )
        settings = [source.settings for source in self.wholes if source.settings]
        if not settings:
            return config
        if any(source.kind in DENSE for source in self.wholes):
            # Naming timm's processor would keep transformers from loading ours. It reads whole images, because
            # pipelines resize masks back to them.
            config.preprocessing = {**settings[0], "crop_pct": 1.0, "crop_mode": "squash"}
        else:
            config.pretrained_cfg = settings[0]
            config.image_processor_type = "TimmWrapperImageProcessor"
        return config

    def _head(self, number: int, name: str, plan: Plan) -> dict[str, Any]:
        """The entry of one task in the config."""
        source = self.wholes[number]
        taps = self.shared.taps(number, plan.depth)
        return {
            "task": name,
            "kind": source.kind,
            "id2label": dict(enumerate(source.labels)),
            **stated(source.problem),
            **mask_settings(source),
            "source": number,
            "model": _description(source),
            "steps": list(self.shared.prefixes[number].steps[: plan.depth]),
            "fields": dict(self.shared.prefixes[number].fields),
            "taps": [{"step": step, "axis": axis, "size": size} for step, _, axis, size in taps],
        }

    def state(self, plan: Plan, matches: Matches) -> dict[str, Tensor]:
        """The state dict of the merge: the trunk, the heads, and the units that each head gathers."""
        reference = self.states[self.shared.reference]
        first = {name: reference[name] for name in plan.touched(reference)}
        common = [name for name in first if all(name in state for state in self.states)]  # the others are never used
        trunk = first | merge_states(self.states, plan.binding, matches, common)
        out = {f"trunk.{name}": value.clone() for name, value in trunk.items()}
        for number, source in enumerate(self.wholes):
            done = self._done(number, plan)
            rest = {name: value for name, value in source.model.state_dict().items() if name not in done}
            out |= {f"heads.{number}.{name}": value.clone() for name, value in rest.items()}
            for step, space, _, _ in self.shared.taps(number, plan.depth):
                match = matches[space]
                assert isinstance(match, Match)  # see `gathered_spaces`
                out[f"unmerge.{number}.{step}.index"] = gathered(match.of(number), match.width)
        return out

    def build(self, config: Any, state: Mapping[str, Tensor]) -> ZipItModel:
        """The merged model with this state. Trunk shapes that differ from the reference's are added to the config."""
        view = self.reference.model
        trunk = Steps({step: copy.deepcopy(view.get_submodule(step)).eval() for step in config.trunk or []})
        known = {f"trunk.{name}": value.shape for name, value in trunk.state_dict().items()}
        config.shapes = {name: list(state[name].shape) for name, shape in known.items() if state[name].shape != shape}
        model = ZipItModel(config, trunk, [copy.deepcopy(source.model).eval() for source in self.wholes])
        model.load_state_dict(state, assign=True)
        model.tie_weights(missing_keys=set(), recompute_mapping=False)  # of layers that a decoder has under two names
        model.requires_grad_(True)
        if config.preprocessing:  # timm's own processor cannot resize predicted masks back
            model.image_processor = dense_processor(config.input_size or (), config.preprocessing)
        model.eval()
        return model


def _description(source: Source) -> dict[str, Any]:
    """The config entry that describes how to build a complete model."""
    return {**source.backbone, "num_classes": len(source.labels)}
