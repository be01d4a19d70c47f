"""The interface of models that are merged with each other: plans, costs, and assembly of the merged model.

Only `kind_of` chooses between the implementations, `Classifiers` and `Multitask`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from hf_zipit.costs import Cost, Cut, LayerCosts, cost_of
from hf_zipit.data.batches import Passes
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.sources.source import Source
from hf_zipit.specs.cuts import resolve_cut
from hf_zipit.specs.plan import Plan
from hf_zipit.specs.spaces import Binding
from hf_zipit.text import load_errors
from hf_zipit.transform.heads import Matches

Merged = ZipItForImageClassification | ZipItModel


def stated(problem: str) -> dict[str, str]:
    """What a head's logits mean, for the config; nothing if they are those of one class of several."""
    return {} if problem == "single-label" else {"problem": problem}


def mask_settings(source: Source) -> dict[str, bool]:
    """How masks number the classes of a model, for the config; nothing if they do as the model does.

    With `reduce_labels`, as for many models of ADE20K, 0 is no class, and class k of the model is k + 1 in masks.
    """
    return {"reduce_labels": True} if source.preprocessing.get("do_reduce_labels") else {}


def plain_attributes(plan: Plan) -> dict[str, dict[str, int | float]] | None:
    """The changed attributes of a plan as a config holds them; `None` if there are none."""
    return {path: dict(values) for path, values in plan.attributes.items()} or None


def heads_of(sources: Sequence[Source], names: Sequence[str]) -> list[dict[str, Any]]:
    """Name (`task`), classes (`id2label`) and, where it is special, `problem` of every task, as in a merge's config."""
    labels = [labels for source in sources for _, labels in source.tasks]
    problems = [problem for source in sources for problem in source.problems]
    named = zip(names, labels, problems, strict=True)
    return [{"task": name, "id2label": dict(enumerate(mine)), **stated(problem)} for name, mine, problem in named]


class Parents(ABC):
    """Opened models whose first layers, or all layers, have the same architecture.

    Attributes:
        joint: whether the merge predicts among the classes of all tasks.
        runs: whether opening the models requires a forward pass.
        config_class: the class of the merge's config.
        binding: the spec, bound to the shared part of the models.
        sources: the shared part of each model, with common parameter names; this is what is matched and merged.
        wholes: the complete models, including layers outside the shared part.
    """

    joint: ClassVar[bool]
    runs: ClassVar[bool]
    config_class: ClassVar[type[ZipItConfig]]
    binding: Binding
    sources: Sequence[Source]
    wholes: Sequence[Source]

    @classmethod
    @abstractmethod
    def open(cls, sources: Sequence[Source], spec: str | Path | None, backbone: str | None) -> "Parents":
        """Find the part that the models share.

        Args:
            sources: one or more models.
            spec: a spec file to use instead of the shipped ones or a trace.
            backbone: the module path of the backbone, in models with other layers around it.

        Raises:
            SourceError: they have nothing in common; the message names the first difference.
            SpecError: no spec describes them.
        """

    @cached_property
    def states(self) -> list[dict[str, Tensor]]:
        """The state dict of the shared part of every model."""
        return [source.model.state_dict() for source in self.sources]

    def with_trunks(self, values: Sequence[Mapping[str, Tensor]]) -> "Parents":
        """The same models with other values in their states, which a merge then takes.

        Args:
            values: for each model, tensors by name. Layers behind a cut, and classifiers, are to be left out.
        """
        out = copy.copy(self)
        vars(out)["states"] = [{**state, **mine} for state, mine in zip(self.states, values, strict=True)]
        return out

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of an input image."""
        return self.sources[0].input_size

    @property
    def reference(self) -> Source:
        """The source whose parameter names the binding uses."""
        return self.sources[0]

    @property
    def fixed_cut(self) -> str | None:
        """The cut of a merge among the models, which can only be merged again at that cut; `None` if there is none."""
        return next((source.cut for source in self.sources if source.trunk is not None), None)

    @cached_property
    def costs(self) -> list[Cost]:
        """FLOPs and parameters of each complete model."""
        return [cost_of(whole.model, self.input_size) for whole in self.wholes]

    @property
    def unit(self) -> Cost:
        """The cost of one model, to compare others with."""
        return self.costs[0]

    def depth(self, cut: str | None) -> int:
        """Number of merged steps up to a named cut; by default, up to the last legal one.

        Raises:
            OptionError: unknown cut; the message lists the legal ones.
        """
        return resolve_cut(self.binding, cut)

    def plan(self, cut: str | None, widths: Mapping[str, int] | None = None) -> Plan:
        """The plan of a merge.

        Args:
            cut: the last merged step or stage; `None` for the last legal cut.
            widths: number of merged units, for the spaces where it differs from one model's.

        Raises:
            OptionError: unknown cut; the message lists the legal ones.
        """
        return Plan(self.binding, self.depth(cut), cut, widths or {})

    @property
    def predicts_jointly(self) -> bool:
        """Whether a joint prediction over the classes of all tasks exists: every task predicts one class of several."""
        return self.joint and all(problem == "single-label" for source in self.sources for problem in source.problems)

    def spaces(self, plan: Plan) -> set[str]:
        """The names of the spaces that a plan merges."""
        return plan.spaces(self.states[0])

    def assemble(self, names: Sequence[str], plan: Plan, matches: Matches, about: dict[str, Any]) -> Merged:
        """The merged model, before calibration.

        Args:
            names: task names.
            plan: where the trunk ends, and how wide it is.
            matches: by space.
            about: provenance, recorded in the config.
        """
        with load_errors("the merge cannot be described in a config", ValueError):
            config = self.config(names, plan)
        config.zipit = about
        return self.build(config, self.state(plan, matches))

    def equally_loud(self, passes: Passes) -> "Parents":
        """The same models with residual streams on one scale, where that is free; see `loudness`.

        Args:
            passes: over the images on which the streams are measured.
        """
        return self

    @abstractmethod
    def gathers(self, plan: Plan) -> bool:
        """Whether each head gathers its own model's units from the trunk, so that its input width does not change."""

    @abstractmethod
    def gathered_spaces(self, plan: Plan) -> set[str]:
        """The spaces of which each head gathers its own model's units; no match of them is dense."""

    @abstractmethod
    def layer_costs(self) -> LayerCosts:
        """FLOPs of a merge at any cut and widths."""

    @abstractmethod
    def cut_costs(self) -> list[Cut]:
        """Costs of every legal cut of the first model."""

    @abstractmethod
    def cost(self, names: Sequence[str], plan: Plan) -> Cost:
        """FLOPs of one image with all heads, and parameters, of the planned merge."""

    @abstractmethod
    def config(self, names: Sequence[str], plan: Plan) -> ZipItConfig:
        """Everything needed to rebuild the merged model, except its shapes."""

    @abstractmethod
    def state(self, plan: Plan, matches: Matches) -> dict[str, Tensor]:
        """The merged model's state dict."""

    @abstractmethod
    def build(self, config: Any, state: Mapping[str, Tensor]) -> Merged:
        """The merged model with this state; shapes that differ from the sources' architecture go into the config."""
