"""Merging classifiers of one architecture: the merge predicts among the classes of all tasks."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_zipit.assembly.loudness import equally_loud
from hf_zipit.assembly.parents import Parents, heads_of, plain_attributes
from hf_zipit.backbones.compatible import check_alike
from hf_zipit.backbones.dtypes import in_one_dtype
from hf_zipit.backbones.merges import observed_within
from hf_zipit.backbones.widths import united, widest
from hf_zipit.costs import Cost, Cut, LayerCosts, cost_of, cut_costs, grown
from hf_zipit.data.batches import Passes
from hf_zipit.find_spec import find_spec
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification, resize
from hf_zipit.sources.source import Branch, Source
from hf_zipit.specs.cuts import channel_axis
from hf_zipit.specs.plan import Plan, gathered
from hf_zipit.specs.spaces import Binding
from hf_zipit.text import load_errors
from hf_zipit.transform.heads import HeadMatch, Matches
from hf_zipit.transform.match import Match
from hf_zipit.transform.transform import merge_states, unmerge_reads

Branches = Sequence[tuple[int, Branch]]  # the number of the model, and the layers behind its trunk


@dataclass(frozen=True, eq=False)
class Classifiers(Parents):
    """Classifiers that share one architecture, but for its widths; see `Parents`.

    Attributes:
        widest: number of the model with the most units, whose architecture the trunk has.
    """

    sources: Sequence[Source]
    binding: Binding
    widest: int = 0
    joint = True
    runs = False
    config_class = ZipItConfig

    @classmethod
    def open(cls, sources: Sequence[Source], spec: str | Path | None = None, backbone: str | None = None) -> "Parents":
        """Bind the spec of the first model.

        Raises:
            SourceError: a model differs from the first in more than its classes and widths.
            SpecError: no spec describes the first model.
        """
        sources = in_one_dtype(sources)
        binding = find_spec(sources[0], spec)
        bindings = check_alike(sources, binding)
        cut = [source for source in sources if source.trunk is not None]
        if cut:
            return cls(sources, observed_within(binding, cut[0]))
        return cls(sources, united(bindings), widest(bindings))

    @property
    def wholes(self) -> Sequence[Source]:  # type: ignore[override]
        """The models themselves: all of their layers are shared."""
        return self.sources

    @property
    def reference(self) -> Source:
        """The widest source."""
        return self.sources[self.widest]

    @property
    def unit(self) -> Cost:
        """The cost of the widest model."""
        return self.costs[self.widest]

    def equally_loud(self, passes: Passes) -> "Parents":
        """The same models with residual streams on one scale, where that is free; see `loudness`."""
        sources = equally_loud(self.sources, self.binding, passes)
        return self if sources is self.sources else replace(self, sources=sources)

    def gathers(self, plan: Plan) -> bool:
        """Whether each head gathers its own model's units from the trunk."""
        return not plan.whole and plan.gathers

    def gathered_spaces(self, plan: Plan) -> set[str]:
        """The spaces of which each head gathers its own model's units."""
        return {plan.crossing} if self.gathers(plan) else set()

    def layer_costs(self) -> LayerCosts:
        """FLOPs of a merge at any cut and widths."""
        classes = [len(source.labels) for source in self.sources]
        return LayerCosts(self.reference.model, self.binding, self.input_size, classes)

    def cut_costs(self) -> list[Cut]:
        """Costs of every legal cut of the widest model."""
        return cut_costs(self.reference.model, self.binding, self.input_size)

    @torch.no_grad()
    def cost(self, names: Sequence[str], plan: Plan) -> Cost:
        """FLOPs of one image with all heads, and parameters, of the planned merge."""

        with torch.device("meta"):
            planned = ZipItForImageClassification(self.config(names, plan))
        branches = self._branches
        for name, value in planned.state_dict().items():
            shape = self._shape(name, list(value.shape), plan, branches)
            if shape != list(value.shape):
                resize(planned, name, shape)
        return cost_of(planned, self.input_size)

    def _shape(self, name: str, planned: list[int], plan: Plan, branches: Branches) -> list[int]:
        """The shape of a tensor of a planned merge: models in memory may differ from the architecture they name.

        Args:
            name: of the tensor in the merge.
            planned: its shape in a merge of models of that architecture.
            plan: the plan of the merge.
            branches: the branches of the merge.
        """
        part, _, inner = name.partition(".")
        number = self.widest
        own: Mapping[str, Tensor] = self.states[number]
        if part != "trunk":
            place, _, inner = inner.partition(".")
            number, branch = branches[int(place)]
            own = branch.state
        binding = self.binding.of(number)
        if part == "unmerge":
            return [binding.spaces[plan.crossing].size if branch.gather is None else len(branch.gather)]
        shape = list(own[inner].shape) if inner in own else planned
        if inner in binding.classifier:
            shape[0] = planned[0]  # the classes of all tasks
        if part == "trunk":
            return grown(binding, inner, shape, plan.ratios)
        if plan.gathers:
            return shape
        width = plan.widths.get(plan.crossing, self.binding.spaces[plan.crossing].size)
        return grown(binding, inner, shape, {plan.crossing: width / binding.spaces[plan.crossing].size})

    def config(self, names: Sequence[str], plan: Plan) -> ZipItConfig:
        """Everything needed to rebuild the merged model, except its shapes."""
        places = [
            {"source": number, "branch": 0 if plan.whole else place}
            for place, (number, branch) in enumerate(self._branches)
            for _ in branch.tasks
        ]
        heads = [head | place for head, place in zip(heads_of(self.sources, names), places, strict=True)]
        first = self.reference
        unmerge = None
        if self.gathers(plan):
            axis = channel_axis(first.model, self.binding, plan.depth, first.input_size)
            unmerge = {"axis": axis, "size": self.binding.spaces[plan.crossing].size}
        config = ZipItConfig(
            backbone=first.backbone,
            owns={step: list(mine) for step, mine in self.binding.owns.items() if mine != (step,)},
            trunk=self.binding.calls(plan.trunk),
            head=self.binding.calls(plan.head),
            cut=plan.cut,
            unmerge=unmerge,
            heads=heads,
            attributes=plain_attributes(plan),
        )
        if first.settings:
            classes = sum(len(source.labels) for source in self.sources)
            config.pretrained_cfg = {**first.settings, "num_classes": classes}
            config.image_processor_type = "TimmWrapperImageProcessor"
        return config

    def state(self, plan: Plan, matches: Matches) -> dict[str, Tensor]:
        """The state dict of the merge: the trunk, the heads, and the units that each head gathers."""
        trunk = merge_states(self.states, self.binding, matches, plan.touched(self.states[0]))
        out = {f"trunk.{name}": value for name, value in trunk.items()}
        if plan.whole:
            return out | self._joined_classifiers(matches)
        for number, (model, branch) in enumerate(self._branches):
            names = self.binding.under(plan.head, branch.state)
            match = matches[plan.crossing]
            assert not isinstance(match, HeadMatch)  # heads do not cross from one step to the next
            mine = match.alone(model, branch.gather)
            if plan.gathers:
                assert isinstance(mine, Match)  # see `gathered_spaces`
                head = {name: branch.state[name].clone() for name in names}
                out[f"unmerge.{number}.index"] = gathered(mine.labels, mine.width)
            else:
                head = unmerge_reads(branch.state, self.binding.of(model), {plan.crossing: mine}, names, 0)
            out.update({f"heads.{number}.{name}": value for name, value in head.items()})
        return out

    @property
    def _branches(self) -> Branches:
        """For each branch of the merge, the number of its model, and the branch as it is in that model."""
        return [(number, branch) for number, source in enumerate(self.sources) for branch in source.parts]

    def _joined_classifiers(self, matches: Matches) -> dict[str, Tensor]:
        """The classifiers of all models, concatenated along the classes and reading merged units."""
        classifier = self.binding.classifier
        parts = [unmerge_reads(state, self.binding, matches, classifier, k) for k, state in enumerate(self.states)]
        return {f"trunk.{name}": torch.cat([part[name] for part in parts]) for name in classifier}

    def build(self, config: Any, state: Mapping[str, Tensor]) -> ZipItForImageClassification:
        """The merged model with this state. Shapes that differ from the config's architecture are added to it."""
        with torch.device("meta"), load_errors("the merge cannot be built from its config", ValueError):
            planned = ZipItForImageClassification(config).state_dict()
        config.shapes = {k: list(v.shape) for k, v in state.items() if k in planned and v.shape != planned[k].shape}
        sources = [self.reference] * len(self.sources) if self.binding.unequal else self.sources
        backbones = [
            copy.deepcopy(one.model).eval()
            for one, source in zip(sources, self.sources, strict=True)
            for _ in source.parts
        ]
        model = ZipItForImageClassification(config, backbones)
        for name, value in model.state_dict().items():  # other widths, and classifiers for the classes of all tasks
            if value.shape != state[name].shape:
                resize(model, name, list(state[name].shape))
        model.load_state_dict(state, assign=True)
        model.requires_grad_(True)
        model.eval()
        return model
