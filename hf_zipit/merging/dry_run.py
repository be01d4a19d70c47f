"""Dry runs: what a merge would do and cost, without downloading weights or writing files."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_zipit.assembly.kinds import kind_of
from hf_zipit.assembly.parents import Parents
from hf_zipit.calibration.methods import CALIBRATIONS
from hf_zipit.calibration.refit.memory import refit_bytes
from hf_zipit.costs import Cost, resized
from hf_zipit.data.batches import REMEMBERED, suited_batch
from hf_zipit.data.draw import USEFUL
from hf_zipit.data.rows import hub_data
from hf_zipit.errors import OptionError, SpecError, TraceError
from hf_zipit.merging.automatic import likely
from hf_zipit.merging.base import base_state, merged_names, named_base
from hf_zipit.merging.merge import check_recipe
from hf_zipit.merging.provenance import recorded, task_names
from hf_zipit.merging.sizing import sized_plan
from hf_zipit.recipe import Recipe
from hf_zipit.saving.provenance import Provenance
from hf_zipit.saving.save import check_saveable
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.download import look_at_data
from hf_zipit.sources.outline import outline
from hf_zipit.sources.source import Source
from hf_zipit.specs.attention import attentions
from hf_zipit.specs.cuts import cut_labels, cut_names
from hf_zipit.specs.plan import Plan
from hf_zipit.statistics.moments import moment_bytes
from hf_zipit.text import load_errors, si, table

BYTES = 4  # per parameter, in float32
_MEMORY = {
    "parents": "parents and working copies",
    "images": "images",
    "statistics": "statistics",
    "merged": "merged model",
    "refit": "refit",
}


@dataclass(frozen=True)
class MergePlan:
    """What a merge would do and cost. FLOPs are of one forward pass of one image with all heads; memory is in bytes.

    Attributes:
        models: parameters of each model, by its task or tasks.
        download: bytes to download for each model, by reference; cached files do not count.
        data: bytes to download for each data set on the Hub, over all splits; `None` if the Hub reports no size.
        spec: the model family that the spec describes.
        spaces: number of merged units, by space.
        cut: where the trunk ends; `None` if only the classifiers follow.
        cuts: the legal cuts, each with the stage that it ends.
        flops: of the merge. With a budget this is the budget, because cut and widths depend on the images.
        parameters: of the merge; `None` with a budget.
        parents_flops: summed over all models.
        parents_parameters: summed over all models.
        heads: merged attention heads of each layer that keeps those of all models, by its module.
        memory: bytes for parents, decoded images, statistics and merge, and for the refit if there is one: its copy of
            the merge, the activations and targets that it keeps, and its regressions. Activations of a batch are not
            counted.
        note: a remark on what the numbers leave out.
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
    heads: dict[str, int]
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
        recipe: the merge to plan; its images are not opened.
        access: token and permissions for reading the models.
        library: format of the result, as for `saving.save`.
        license: license of the result, as for `saving.save`.

    Raises:
        ZipItError: as in the merge, if models, spec, cut, options, licenses or format are wrong.

    >>> plan_merge(read_recipe("recipe.yml")).flops  # doctest: +SKIP
    """
    refs = [entry if isinstance(entry, str) else entry.ref for entry in recipe.sources]
    if None in refs:
        raise OptionError("the recipe does not record where its models are; pass the models along with it")
    check_recipe(recipe, len(refs), data=[])
    given, recipe = recipe, likely(recipe)
    outlines = [outline(str(ref), access) for ref in refs]
    sources = [source for source, _ in outlines]
    check_result(sources, recipe, library, license)
    names = task_names(sources, recipe.tasks)
    parents = _open(sources, [str(ref) for ref in refs], recipe, access)
    plan = sized_plan(parents, recipe)
    missing = {str(ref): bytes_ for ref, (_, bytes_) in zip(refs, outlines, strict=True)}
    if recipe.how.based:
        ref = str(named_base(recipe.base, sources))
        base, missing[ref] = outline(ref, access)
        base_state(base, parents.states, merged_names(parents.states, plan))
    cost = parents.cost(names, plan)
    touched = parents.spaces(plan)
    spaces = {name: plan.widths.get(name, space.size) for name, space in plan.binding.spaces.items() if name in touched}
    budget = recipe.flops_budget
    alone = Cost(sum(one.flops for one in parents.costs), sum(one.parameters for one in parents.costs))
    return MergePlan(
        models={name: one.parameters for name, one in zip(_by_model(names, sources), parents.costs, strict=True)},
        download=missing,
        data={ref: look_at_data(*on_hub, access) for ref in recipe.data or [] if (on_hub := hub_data(ref))},
        spec=plan.binding.spec.family,
        spaces=spaces,
        cut=recipe.cut or (None if parents.joint else plan.trunk[-1]),
        cuts=cut_names(plan.binding),
        flops=cost.flops if budget is None else round(budget * parents.costs[0].flops),
        parameters=cost.parameters if budget is None else None,
        parents_flops=alone.flops,
        parents_parameters=alone.parameters,
        heads={
            layer.module: len(sources) * layer.heads
            for axis, layer in attentions(plan.binding).items()
            if axis in plan.kept
        },
        memory=_memory(recipe, parents, plan, spaces, alone if budget is not None else cost),
        note=_note(given, recipe),
    )


def _open(sources: Sequence[Source], refs: Sequence[str], recipe: Recipe, access: Access) -> Parents:
    """Open models from their outlines; those that must run to be opened are built with random weights."""
    kind = kind_of(sources, recipe.backbone)
    if kind.runs:
        sources = [outline(ref, access, "cpu")[0] for ref in refs]
        return kind.open(sources, recipe.spec, recipe.backbone)
    try:
        return kind.open(sources, recipe.spec, recipe.backbone)
    except (SpecError, TraceError, RuntimeError):  # a trace or a check needs a model that runs
        first = outline(refs[0], access, "cpu")[0]
        return kind.open([first, *sources[1:]], recipe.spec, recipe.backbone)


def _by_model(names: Sequence[str], sources: Sequence[Source]) -> list[str]:
    """The names of each model's tasks, joined; a model that is a merge has several."""
    left = iter(names)
    return [", ".join(next(left) for _ in source.tasks) for source in sources]


def _memory(recipe: Recipe, parents: Parents, plan: Plan, spaces: Iterable[str], merged: Cost) -> dict[str, int]:
    """Bytes of each part of a merge.

    Args:
        recipe: the merge to plan.
        parents: the models.
        plan: its cut and widths.
        spaces: the names of the spaces that are merged.
        merged: what the merged model costs.
    """
    images = _images(recipe)
    pixels = REMEMBERED if images is None else images * BYTES * math.prod(parents.input_size)
    found = {
        "parents": 2 * BYTES * sum(one.parameters for one in parents.costs),
        "images": pixels if recipe.reads_images and pixels <= REMEMBERED else 0,
        "statistics": _statistics_bytes(parents, plan, spaces) if recipe.needs_statistics else 0,
        "merged": BYTES * merged.parameters,
    }
    if CALIBRATIONS[recipe.calibrate].refits:
        batch = recipe.batch_size or suited_batch(parents.input_size)
        regressions = refit_bytes(parents.sources, plan, parents.input_size, images, batch)
        found["refit"] = BYTES * merged.parameters + regressions
    return found


def _images(recipe: Recipe) -> int | None:
    """How many images a merge reads, at most; `None` if that depends on the data."""
    number = recipe.num_images or USEFUL
    if isinstance(number, str):
        return None
    return sum(number) if isinstance(number, list) else number * max(1, len(recipe.data or []))


def _statistics_bytes(parents: Parents, plan: Plan, spaces: Iterable[str]) -> int:
    """Bytes of the second moments: a triangle for each space, and those of kept heads."""
    models = len(parents.sources)
    known = parents.binding.spaces
    matched = [known[name] for name in spaces if known[name].probes and known[name].group_axis not in plan.kept]
    kept = [layer for axis, layer in attentions(plan.binding).items() if plan.kept.get(axis, layer.units) < layer.units]
    heads = sum(moment_bytes(models * x.values.size) + 16 * models * x.values.size * x.units for x in kept)
    return sum(moment_bytes(sum(space.sizes(models))) for space in matched) + heads


def check_result(sources: Sequence[Source], recipe: Recipe, library: str, license: str | None) -> None:
    """Check that the result of a merge can be saved, before merging.

    Args:
        sources: the opened models, or their outlines.
        recipe: the merge to make.
        library: format of the result, as for `saving.save`.
        license: license of the result, as for `saving.save`.

    Raises:
        ZipItError: as `saving.save` would.
    """
    kind = kind_of(sources, recipe.backbone)
    about = Provenance(sources=[recorded(source) for source in sources]).to_dict()
    heads = [{"task": f"{i}", "id2label": {}, "source": i, "model": s.backbone} for i, s in enumerate(sources)]
    with load_errors("the merge cannot be described in a config", ValueError):
        config = kind.config_class(backbone=sources[0].backbone, heads=heads, zipit=about)
    check_saveable(config, library, license=license)
    known = not next(sources[0].model.parameters()).is_meta  # a model on the meta device cannot be traced
    if library != "zipit" and known:
        parents = kind.open(sources, recipe.spec, recipe.backbone)
        plan = sized_plan(parents, recipe)
        planned = parents.config(task_names(sources, recipe.tasks), plan)
        planned.shapes = _shapes(parents, plan)
        check_saveable(planned, library)


def _shapes(parents: Parents, plan: Plan) -> dict[str, list[int]]:
    """The shapes of the tensors of a planned trunk that differ from those of the models."""
    model = parents.reference.model
    planned = resized(model, plan.binding, plan.ratios, attributes=plan.attributes).state_dict()
    own = model.state_dict()
    return {f"trunk.{n}": list(v.shape) for n, v in planned.items() if v.shape != own[n].shape}


def plan_text(plan: MergePlan) -> str:
    """The plan as text."""
    models = [[name, si(n)] for name, n in plan.models.items()]
    one = len(plan.models) == 1
    costs = [["before" if one else "all parents", si(plan.parents_flops), si(plan.parents_parameters)]]
    costs.append(
        ["after" if one else "merged", si(plan.flops), "-" if plan.parameters is None else si(plan.parameters)]
    )
    memory = ", ".join(f"{_MEMORY[key]} {si(size, 'B')}" for key, size in plan.memory.items())
    missing = [f"{ref}: {si(size, 'B')}" for ref, size in plan.download.items() if size]
    missing += [f"{ref}: {'?' if n is None else 'at most ' + si(n, 'B')}" for ref, n in plan.data.items() if n != 0]
    where = f"up to {plan.cut}" if plan.cut else "in all layers except the classifiers"
    lines = [
        table(["model", "params"], models),
        f"{plan.spec}: {len(plan.spaces)} spaces of {sum(plan.spaces.values())} units are merged {where}",
        f"{len(plan.cuts)} legal cuts: {', '.join(cut_labels(plan.cuts))}" if plan.cuts else "no legal cuts",
        *([_heads_text(plan)] if plan.heads else []),
        table(["all tasks, one image", "FLOPs", "params"], costs),
        f"approximate memory without activations: {memory}",
        f"to download: {', '.join(missing) or 'nothing'}",
        *([plan.note] if plan.note else []),
    ]
    return "\n\n".join(lines)


def _heads_text(plan: MergePlan) -> str:
    """The attention heads that are kept, in words."""
    counts = " or ".join(str(count) for count in dict.fromkeys(plan.heads.values()))
    return f"the attention heads of all models are kept in {len(plan.heads)} layers: {counts} in each"


def _note(given: Recipe, planned: Recipe) -> str | None:
    """A remark on what the numbers leave out, or take for granted."""
    notes = []
    if given.automatic:
        chosen = f"{planned.method} with {planned.calibrate}"
        notes.append(f"method and calibration are chosen once models and images are read; this is for {chosen}")
    if planned.flops_budget is not None:
        most = f"at most {planned.flops_budget:g}x the FLOPs of one parent"
        notes.append(f"cut and widths are chosen once the images are read, for {most}")
    return "; ".join(notes) or None
