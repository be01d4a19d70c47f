"""What a merge would do and cost, before weights are downloaded or anything is written."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hf_zipit.assembly import multitask as mixed
from hf_zipit.assembly.classifier import config_of
from hf_zipit.assembly.plan import Plan
from hf_zipit.backbones.compatible import check_alike
from hf_zipit.backbones.share import are_mixed, share
from hf_zipit.costs import count_flops
from hf_zipit.data.rows import hub_data
from hf_zipit.errors import OptionError, ZipItError
from hf_zipit.find_spec import find_spec
from hf_zipit.matching.methods import Options
from hf_zipit.merging.budget import grown
from hf_zipit.merging.merge import checked_options
from hf_zipit.merging.provenance import recorded, task_names
from hf_zipit.merging.sizing import Sizing, touched_spaces
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.configuration_zipit_model import ZipItModelConfig
from hf_zipit.models.modeling_zipit import ZipItForImageClassification, resize
from hf_zipit.recipe import Recipe
from hf_zipit.saving.save import check_saveable
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.checkpoint import read_json
from hf_zipit.sources.download import look_at_data
from hf_zipit.sources.outline import _from_config, _outline
from hf_zipit.sources.source import Source
from hf_zipit.specs.cuts import cut_labels, cut_names, resolve_cut
from hf_zipit.specs.spaces import Binding
from hf_zipit.text import si, table

_BYTES = {"parents": "parents and working copies", "statistics": "statistics", "merged": "merged model"}


@dataclass(frozen=True)
class MergePlan:
    """FLOPs are of one forward of one image with all heads, sizes and memory are in bytes.

    `download` is what is not in the cache yet of each model, and `data` of each data set on the Hub, with all its
    splits (`None` where the Hub does not tell). `cuts` are the legal cuts, each with the stage that it ends. `memory`
    leaves out activations, which grow with the batch size. With a budget, cut and widths are chosen when the images
    have been read: `flops` are then the budget, `parameters` are `None`, and `note` says so.
    """

    models: dict[str, int]
    download: dict[str, int]
    data: dict[str, int | None]
    spec: str
    spaces: dict[str, int]
    cut: str | None
    cuts: dict[str, str | None]
    flops: int
    parameters: int | None
    parents_flops: int
    parents_parameters: int
    memory: dict[str, int]
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def plan_merge(
    recipe: Recipe, access: Access = NOTHING, library: str = "zipit", license: str | None = None
) -> MergePlan:
    """Plan a merge from the models' configurations.

    Args:
        recipe: what would be merged; its data is not opened.
        access: what the user allows when models are looked at.
        library, license: how it would be saved (see `saving.save`).

    Raises:
        ZipItError: as the merge would, where models, spec, cut, options, licences or format are wrong.

    >>> plan_merge(read_recipe("recipe.yml")).flops  # doctest: +SKIP
    """
    refs = [entry if isinstance(entry, str) else entry.ref for entry in recipe.sources]
    if None in refs:
        raise OptionError("the recipe does not tell where its models are: name them beside it")
    options = checked_options({"sources": refs, **recipe.arguments(), "data": recipe.data or []})
    looked = [_outline(str(ref), access) for ref in refs]
    sources = [source for source, _ in looked]
    check_result(sources, recipe, library, license)
    names = task_names(sources, recipe.tasks)
    several = are_mixed(sources) or recipe.backbone is not None
    widths: Mapping[str, int] = {}
    if several:
        shared = share([_outline(str(ref), access, "cpu")[0] for ref in refs], recipe.spec, recipe.backbone)
        plan, sources = mixed.plan_shared(shared, options, recipe.cut), shared.wholes
        touched, (flops, total) = touched_spaces(plan, shared.sources[0].model.state_dict()), mixed.cost(shared, plan)
    else:
        plan, widths, merged = _outline_of_merge(sources, names, recipe, options)
        touched = touched_spaces(plan, sources[0].model.state_dict())
        flops, total = count_flops(merged, sources[0].input_size), sum(p.numel() for p in merged.parameters())
    binding = plan.binding
    spaces = {name: widths.get(name, space.size) for name, space in binding.spaces.items() if name in touched}
    sizes = [sum(p.numel() for p in source.model.parameters()) for source in sources]
    costs = [count_flops(source.model, source.input_size) for source in sources]
    if options.flops_budget is not None:
        flops = round(options.flops_budget * costs[0])
    sets = max(1, len(recipe.data or []))
    pairs = sum((len(sources) * binding.spaces[name].size) ** 2 for name in spaces if binding.spaces[name].probes)
    return MergePlan(
        models=dict(zip(names, sizes, strict=True)),
        download={str(ref): missing for ref, (_, missing) in zip(refs, looked, strict=True)},
        data={ref: look_at_data(*on_hub, access) for ref in recipe.data or [] if (on_hub := hub_data(ref))},
        spec=binding.spec.family,
        spaces=spaces,
        cut=recipe.cut or (plan.trunk[-1] if several else None),
        cuts=cut_names(binding),
        flops=flops,
        parameters=total if options.flops_budget is None else None,
        parents_flops=sum(costs),
        parents_parameters=sum(sizes),
        memory={
            "parents": 2 * 4 * sum(sizes),
            "statistics": 8 * sets * pairs if options.needs_statistics else 0,
            "merged": 4 * (total if options.flops_budget is None else sum(sizes)),
        },
        note=_note(options),
    )


def _unmatched(*_: object) -> Any:
    raise AssertionError("a width needs no images")


@torch.no_grad()
def _outline_of_merge(
    sources: list[Source], names: Sequence[str], recipe: Recipe, options: Options
) -> tuple[Plan, Mapping[str, int], ZipItForImageClassification]:
    """Where classifiers are cut, how wide they become, and the merged model without weights."""
    _, binding = _bound(sources, recipe)
    sized = options if options.flops_budget is None else replace(options, flops_budget=None)
    plan, widths = Sizing(sources, binding, _unmatched, _unmatched).plan(sized, recipe.cut)
    with torch.device("meta"):
        merged = ZipItForImageClassification(config_of(sources, names, plan))
    ratios = {name: width / binding.spaces[name].size for name, width in widths.items()}
    for name, value in merged.state_dict().items():
        part, _, inner = name.partition(".")
        if part == "heads" and not plan.gathers:
            part, inner = "trunk", inner.partition(".")[2]
        shape = grown(binding, inner, value.shape, ratios) if part == "trunk" else list(value.shape)
        if shape != list(value.shape):
            resize(merged, name, shape)
    return plan, widths, merged


def check_result(sources: Sequence[Source], recipe: Recipe, library: str, license: str | None) -> None:
    """Refuse before the work what saving the result would refuse.

    Args:
        sources: the opened models, or their outlines.
        recipe: what will be merged.
        library, license: as for `saving.save`.

    Raises:
        ZipItError: as `saving.save` would.
    """
    parents = {"sources": [recorded(source) for source in sources]}
    kind = ZipItModelConfig if are_mixed(sources) or recipe.backbone is not None else ZipItConfig
    parts = [{"task": f"{i}", "id2label": {}, "source": i, "model": s.backbone} for i, s in enumerate(sources)]
    check_saveable(kind(backbone=sources[0].backbone, heads=parts, zipit=parents), library, license=license)
    known = not next(sources[0].model.parameters()).is_meta  # without weights no spec is traced
    if library != "zipit" and known:
        binding = find_spec(sources[0], recipe.spec)
        plan = Plan(binding, resolve_cut(binding, recipe.cut), recipe.cut)
        check_saveable(config_of(sources, task_names(sources, recipe.tasks), plan), library)


def plan_text(plan: MergePlan) -> str:
    """The plan as text."""
    models = [[name, si(n)] for name, n in plan.models.items()]
    costs = [["parents, one after the other", si(plan.parents_flops), si(plan.parents_parameters)]]
    costs.append(["merged", si(plan.flops), "-" if plan.parameters is None else si(plan.parameters)])
    memory = ", ".join(f"{_BYTES[key]} {si(size, 'B')}" for key, size in plan.memory.items())
    missing = [f"{ref}: {si(size, 'B')}" for ref, size in plan.download.items() if size]
    missing += [f"{ref}: {'?' if n is None else 'at most ' + si(n, 'B')}" for ref, n in plan.data.items() if n != 0]
    where = f"up to {plan.cut}" if plan.cut else "in all layers but the classifiers"
    lines = [
        table(["model", "params"], models),
        f"{plan.spec}: {len(plan.spaces)} spaces of {sum(plan.spaces.values())} units are merged {where}",
        f"{len(plan.cuts)} legal cuts: {', '.join(cut_labels(plan.cuts))}" if plan.cuts else "no legal cuts",
        table(["all tasks, one image", "FLOPs", "params"], costs),
        f"memory beside activations, about: {memory}",
        f"to download: {', '.join(missing) or 'nothing'}",
        *([plan.note] if plan.note else []),
    ]
    return "\n\n".join(lines)


def _note(options: Options) -> str | None:
    """What the counts do not show."""
    if options.flops_budget is None:
        return None
    most = f"at most {options.flops_budget:g}x the FLOPs of one parent"
    return f"cut and widths are chosen when the images have been read, for {most}"


def _bound(sources: Sequence[Source], recipe: Recipe) -> tuple[list[Source], Binding]:
    """The spec bound to the outlines; where a trace is needed the first model is built with random weights."""
    try:
        binding = find_spec(sources[0], recipe.spec)
    except (ZipItError, RuntimeError, NotImplementedError):
        folder = Path(sources[0].origin["folder"])
        real = _from_config(read_json(folder / "config.json"), folder)
        binding = find_spec(replace(real, name=sources[0].name), recipe.spec)
    check_alike(sources, binding)
    return list(sources), binding
