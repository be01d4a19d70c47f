"""What a merge would do and cost, before weights are downloaded or anything is written."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hf_zipit.access import NOTHING, Access
from hf_zipit.assembly import Plan, config_of
from hf_zipit.backbones import are_mixed
from hf_zipit.chain import count_flops, cut_names, resolve_cut
from hf_zipit.checkpoint import read_json, weight_files
from hf_zipit.configuration_zipit import ZipItConfig
from hf_zipit.configuration_zipit_model import ZipItModelConfig
from hf_zipit.errors import OptionError, SourceError, ZipItError
from hf_zipit.hub.download import HUB_ID, look
from hf_zipit.libraries import Source, from_module
from hf_zipit.matching.methods import Options
from hf_zipit.merger import recorded, task_names
from hf_zipit.merging import checked_options
from hf_zipit.modeling_zipit import ZipItForImageClassification, build_backbone
from hf_zipit.recipe import Recipe
from hf_zipit.report import table
from hf_zipit.saving import check_saveable
from hf_zipit.sources import check_alike, find_spec, load
from hf_zipit.spaces import Binding

_NOT_STRUCTURE = {"id2label", "label2id", "num_labels", "architectures", "transformers_version", "_name_or_path"}
_BYTES = {"parents": "parents and working copies", "statistics": "statistics", "merged": "merged model"}


@dataclass(frozen=True)
class MergePlan:
    """FLOPs are of one forward of one image with all heads, sizes and memory are in bytes.

    `download` is what is not in the cache yet of each model; `memory` leaves out activations, which grow with the
    batch size. A trunk of another width than the parents' is counted at theirs, and `note` says so.
    """

    models: dict[str, int]
    download: dict[str, int]
    spec: str
    spaces: dict[str, int]
    cut: str | None
    cuts: list[str]
    flops: int
    parameters: int
    parents_flops: int
    parents_parameters: int
    memory: dict[str, int]
    note: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def plan_merge(recipe: Recipe, access: Access = NOTHING) -> MergePlan:
    """Plan a merge from the models' configurations.

    Args:
        recipe: what would be merged; its data is not opened.
        access: what the user allows when models are looked at.

    Raises:
        ZipItError: as the merge would, where models, spec, cut or options are wrong.

    >>> plan_merge(read_recipe("recipe.yml")).flops  # doctest: +SKIP
    """
    refs = [entry if isinstance(entry, str) else entry.ref for entry in recipe.sources]
    if None in refs:
        raise OptionError("the recipe does not tell where its models are: name them beside it")
    options = checked_options({"sources": refs, **recipe.arguments(), "data": recipe.data or []})
    looked = [_outline(str(ref), access) for ref in refs]
    sources, binding = _bound([source for source, _ in looked], recipe)
    names = task_names(sources, recipe.tasks)
    plan = Plan(binding, resolve_cut(binding, recipe.cut), recipe.cut)
    config = config_of(sources, names, plan)
    with torch.device("meta"):
        merged = ZipItForImageClassification(config)
    touched = {row.space for rows in binding.rows(plan.touched(sources[0].model.state_dict())).values() for row in rows}
    spaces = {name: space.size for name, space in binding.spaces.items() if name in touched}
    sizes = [sum(p.numel() for p in source.model.parameters()) for source in sources]
    total = sum(p.numel() for p in merged.parameters())
    sets = max(1, len(recipe.data or []))
    pairs = sum((len(sources) * size) ** 2 for name, size in spaces.items() if binding.spaces[name].probes)
    return MergePlan(
        models=dict(zip(names, sizes, strict=True)),
        download={str(ref): missing for ref, (_, missing) in zip(refs, looked, strict=True)},
        spec=binding.spec.family,
        spaces=spaces,
        cut=recipe.cut,
        cuts=cut_names(binding),
        flops=count_flops(merged, sources[0].input_size),
        parameters=total,
        parents_flops=sum(count_flops(source.model, source.input_size) for source in sources),
        parents_parameters=sum(sizes),
        memory={
            "parents": 2 * 4 * sum(sizes),
            "statistics": 8 * sets * pairs if options.needs_statistics else 0,
            "merged": 4 * total,
        },
        note=_note(options),
    )


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
    if library != "zipit":  # which layers a full merge leaves to its tasks is for its spec to say
        binding = find_spec(sources[0], recipe.spec)
        plan = Plan(binding, resolve_cut(binding, recipe.cut), recipe.cut)
        check_saveable(config_of(sources, task_names(sources, recipe.tasks), plan), library)


def plan_text(plan: MergePlan) -> str:
    """The plan as text."""
    models = [[name, f"{n / 1e6:.4g}"] for name, n in plan.models.items()]
    costs = [
        ["parents, one after the other", f"{plan.parents_flops / 1e9:.4g}", f"{plan.parents_parameters / 1e6:.4g}"],
        ["merged", f"{plan.flops / 1e9:.4g}", f"{plan.parameters / 1e6:.4g}"],
    ]
    memory = ", ".join(f"{_BYTES[key]} {_megabytes(size)}" for key, size in plan.memory.items())
    missing = [f"{ref}: {_megabytes(size)}" for ref, size in plan.download.items() if size]
    where = f"up to {plan.cut}" if plan.cut else "in all layers but the classifiers"
    lines = [
        table(["model", "M params"], models),
        f"{plan.spec}: {len(plan.spaces)} spaces of {sum(plan.spaces.values())} units are merged {where}",
        f"legal cuts: {', '.join(plan.cuts) or 'none'}",
        table(["all tasks, one image", "GFLOPs", "M params"], costs),
        f"memory beside activations, about: {memory}",
        f"to download: {', '.join(missing) or 'nothing'}",
        *([plan.note] if plan.note else []),
    ]
    return "\n\n".join(lines)


def _note(options: Options) -> str | None:
    """What the counts do not show."""
    counted = "FLOPs, parameters and memory of the merged model are counted at the parents' width"
    if options.flops_budget is not None:
        chosen = "cut and widths are chosen when the images have been read, for at most"
        return f"{counted}: {chosen} {options.flops_budget:g}x the FLOPs of one parent"
    return None if options.width == 1 else f"{counted}: width {options.width:g} changes them"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.3g} MB" if size < 1e9 else f"{size / 1e9:.3g} GB"


def _outline(ref: str, access: Access, device: str = "meta") -> tuple[Source, int]:
    """A model's structure from its configuration, without weights, and the bytes of weights still to download."""
    if Path(ref).is_dir():
        weight_files(Path(ref), access.allow_pickle)
        folder, name, missing = Path(ref), Path(ref).resolve().name, 0
    elif HUB_ID.fullmatch(ref) and not Path(ref).exists():
        found, missing = look(ref, access)
        folder, name = found.folder, found.name.partition("/")[2]
    else:
        raise SourceError(f"no model at '{ref}': it is neither a folder nor a Hub id (user/name)")
    config = read_json(folder / "config.json")
    if config.get("model_type") == "zipit":  # what lies behind its trunk is known from its weights only
        return load(ref, access=access), 0
    try:
        with torch.device(device):
            source = _from_config(config)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise SourceError(f"{folder}/config.json describes no model that can be built: {error}") from None
    return replace(source, name=name, origin={**source.origin, "folder": str(folder)}), missing


def _from_config(config: dict[str, Any]) -> Source:
    if isinstance(config.get("architecture"), str):
        args = {k: v for k, v in config.get("model_args", {}).items() if k != "num_classes"}
        settings = config.get("pretrained_cfg", {})
        classes = config.get("num_classes", settings.get("num_classes", 1000))
        backbone = {"library": "timm", "architecture": config["architecture"], "model_args": args}
        model: Any = build_backbone(backbone, classes)
        model.pretrained_cfg = {**settings, "architecture": config["architecture"]}
        return from_module(model, args)
    classes = len(config.get("id2label", {})) or 2
    backbone = {"library": "transformers", "config": {k: v for k, v in config.items() if k not in _NOT_STRUCTURE}}
    if config.get("architectures"):
        backbone["architecture"] = config["architectures"][0]
    return from_module(build_backbone(backbone, classes), None)


def _bound(sources: Sequence[Source], recipe: Recipe) -> tuple[list[Source], Binding]:
    """The spec bound to the outlines; where a trace is needed the first model is built with random weights."""
    try:
        binding = find_spec(sources[0], recipe.spec)
    except (ZipItError, RuntimeError, NotImplementedError):
        real = _from_config(read_json(Path(sources[0].origin["folder"]) / "config.json"))
        binding = find_spec(replace(real, name=sources[0].name), recipe.spec)
    check_alike(sources, binding)
    return list(sources), binding
