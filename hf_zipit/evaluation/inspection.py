"""What a model consists of: spaces and cuts of one to merge; tasks, costs and merged spaces of a merge."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from hf_zipit.costs import count_flops
from hf_zipit.models.modeling_zipit_model import ZipItModel
from hf_zipit.saving.load import Merged
from hf_zipit.sources.libraries import preprocessing_of
from hf_zipit.sources.whole_models import preprocessing_of_tasks
from hf_zipit.specs.cuts import Cut, cut_labels, cut_names
from hf_zipit.specs.spaces import Binding
from hf_zipit.text import si, table


def inspection(binding: Binding, cuts: Sequence[Cut]) -> dict[str, Any]:
    """Spaces and cuts of a model as plain values, for JSON."""
    spaces = [{"name": s.name, "size": s.size, "groups": s.groups} for s in binding.spaces.values()]
    stages = cut_names(binding)
    listed = [{**asdict(cut), "stage": stages.get(cut.name)} for cut in cuts]
    return {"family": binding.spec.family, "spaces": spaces, "cuts": listed}


def inspection_text(binding: Binding, cuts: Sequence[Cut]) -> str:
    """Spaces and cuts of a model as two tables."""
    spaces = [
        [
            s.name,
            str(s.size),
            str(s.groups) if s.groups > 1 else "-",
            ", ".join(f"{p.module}.{p.side}" for p in s.probes),
        ]
        for s in binding.spaces.values()
    ]
    lines, stages = [], cut_names(binding)
    for cut in cuts:
        share = f"{100 * cut.trunk_flops / cut.flops:.1f}"
        two = f"{(2 * cut.flops - cut.trunk_flops) / cut.flops:.3f}x"
        parameters = f"{(2 * cut.parameters - cut.trunk_parameters) / cut.parameters:.3f}x"
        (name,) = cut_labels({cut.name: stages.get(cut.name)})
        lines.append([name, cut.space, si(cut.trunk_flops), share, si(cut.trunk_parameters), two, parameters])
    header = ["cut", "space", "trunk FLOPs", "% of all", "trunk params", "2 tasks: FLOPs", "params"]
    return (
        f"{binding.spec.family}: {len(binding.spaces)} spaces, {len(cuts)} cuts\n\n"
        + table(["space", "units", "groups", "observed at"], spaces)
        + "\n\n"
        + table(header, lines)
    )


def merge_inspection(merged: Merged) -> dict[str, Any]:
    """Tasks, sources, method, cut, costs and merged spaces of a merge as plain values.

    FLOPs are of one forward of one image. `reads` names the trunk's steps whose outputs a task's own model reads, with
    their units, where that may be several. `heads` has one entry for each copy of the layers behind the trunk.
    """
    config, about = merged.config, merged.config.zipit or {}
    several = isinstance(merged, ZipItModel)
    size = (preprocessing_of_tasks if several else preprocessing_of)(merged)[0]
    groups = [[i] for i in range(len(config.tasks))] if several else config.branches
    names = [[config.tasks[i] for i in group] for group in groups]
    total = count_flops(merged, size)
    alone = [count_flops(merged, size, tasks=group) for group in names]
    trunk = total if len(alone) == 1 else (sum(alone) - total) // (len(alone) - 1)  # every pass runs it once
    parameters = [_parameters(head) for head in merged.heads] or [0]
    heads = [
        {"tasks": group, "flops": flops - trunk, "parameters": held}
        for group, flops, held in zip(names, alone, parameters, strict=True)
    ]
    tasks = [
        {"task": h["task"], "kind": h.get("kind", "image-classification"), "classes": list(h["id2label"].values())}
        | {"source": h["source"], "reads": _reads(h, config.trunk or []) if several else []}
        for h in config.heads or []
    ]
    return {
        "tasks": tasks,
        "sources": about.get("sources", []),
        "cut": config.cut,
        **{key: about.get("recipe", {}).get(key) for key in ("method", "calibrate", "width", "flops_budget")},
        "trunk": {"flops": trunk, "parameters": _parameters(merged) - sum(parameters)},
        "heads": heads,
        "flops": total,
        "parameters": _parameters(merged),
        "spaces": about.get("spaces", []),
    }


def merge_text(found: dict[str, Any]) -> str:
    """What `merge_inspection` found, as tables."""
    where = f"up to {found['cut']}" if found["cut"] else "in all layers that are alike"
    size = f"flops-budget {found['flops_budget']:g}" if found["flops_budget"] else f"width {found['width'] or 1:g}"
    sources = [_named(source) for source in found["sources"]]
    tasks = [[t["task"], t["kind"], str(len(t["classes"])), sources[t["source"]]] for t in found["tasks"]]
    reads = [[t["task"], " + ".join(f"{r['step']} ({r['units']})" for r in t["reads"])] for t in found["tasks"]]
    costs = [["trunk", *_cost(found["trunk"])]]
    costs += [[f"behind it: {', '.join(head['tasks'])}", *_cost(head)] for head in found["heads"] if head["parameters"]]
    costs.append(["all tasks", *_cost(found)])
    spaces = [[s["name"], *(str(s[key]) for key in ("width", "shared", "within", "alone"))] for s in found["spaces"]]
    return "\n\n".join(
        [
            f"{len(sources)} models merged by {found['method']} {where}; {size}, calibrated: {found['calibrate']}",
            table(["task", "kind", "classes", "from"], tasks),
            *([table(["task", "reads of the trunk (units)"], reads)] if any(text for _, text in reads) else []),
            table(["one image", "FLOPs", "params"], costs),
            table(["space", "merged units", "shared", "within one model", "as they were"], spaces),
        ]
    )


def _reads(head: dict[str, Any], steps: Sequence[str]) -> list[dict[str, Any]]:
    return [{"step": steps[tap["step"]], "units": tap["size"]} for tap in head["taps"]]


def _cost(part: dict[str, Any]) -> list[str]:
    return [si(part["flops"]), si(part["parameters"])]


def _named(source: dict[str, Any]) -> str:
    if source.get("id"):
        return f"{source['id']}@{str(source['revision'])[:7]}"
    return str(source.get("folder") or "a model in memory")


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
