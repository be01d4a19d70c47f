"""Descriptions of models: feature spaces and cuts of a source model; tasks, costs and merged spaces of a merge."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hf_zipit.assembly.parents import Merged
from hf_zipit.costs import Cut, count_flops, count_parameters
from hf_zipit.saving.provenance import Provenance
from hf_zipit.sources.preprocessing import preprocessing_of
from hf_zipit.specs.cuts import cut_labels, cut_names
from hf_zipit.specs.spaces import Binding
from hf_zipit.text import si, table

LEGEND = """\
space: units that are merged together, from the layers that write them to those that read them
observed at: the layers whose inputs (in) or outputs (out) show what the units do
cut: the last step that is merged (--cut); behind it every task keeps layers of its own
2 tasks: what two models merged up to this cut cost, relative to one of them"""

MERGE_LEGEND = """\
shared: merged units with members of several models; within one model: with several members, all of one model;
unmerged: single units, as they were"""


def inspection(binding: Binding, cuts: Sequence[Cut]) -> dict[str, Any]:
    """The feature spaces and legal cuts of a model as plain values, for JSON."""
    spaces = [{"name": s.name, "size": s.size, "groups": s.groups} for s in binding.spaces.values()]
    stages = cut_names(binding)
    listed = [{**asdict(cut), "stage": stages.get(cut.name)} for cut in cuts]
    return {"family": binding.spec.family, "spaces": spaces, "cuts": listed}


def inspection_text(binding: Binding, cuts: Sequence[Cut]) -> str:
    """The feature spaces and legal cuts of a model as two tables."""
    spaces = []
    for space in binding.spaces.values():
        groups = str(space.groups) if space.groups > 1 else "-"
        probes = ", ".join(f"{probe.module}.{probe.side}" for probe in space.probes)
        spaces.append([space.name, str(space.size), groups, probes])
    lines = []
    stages = cut_names(binding)
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
        + f"\n\n{LEGEND}"
    )


def merge_inspection(merged: Merged) -> dict[str, Any]:
    """Tasks, sources, method, cut, costs and merged spaces of a merge as plain values, for JSON.

    FLOPs are those of one forward pass of one image. `reads` lists the steps of the trunk whose outputs a task reads,
    with their numbers of units; it is empty for classifiers, which read only the last step. `heads` has one entry for
    each copy of the layers after the trunk.
    """
    config = merged.config
    about = Provenance.of(config)
    size = preprocessing_of(merged)[0]
    names = [[config.tasks[i] for i in group] for group in config.branches]
    total = count_flops(merged, size)
    alone = [count_flops(merged, size, tasks=group) for group in names]
    trunk = total if len(alone) == 1 else (sum(alone) - total) // (len(alone) - 1)  # each pass runs the trunk once
    parameters = [count_parameters(head) for head in merged.heads] or [0]
    heads = [
        {"tasks": group, "flops": flops - trunk, "parameters": held}
        for group, flops, held in zip(names, alone, parameters, strict=True)
    ]
    tasks = [
        {"task": h["task"], "kind": h.get("kind", "image-classification"), "classes": list(h["id2label"].values())}
        | {"source": h["source"], "reads": _reads(h, config.trunk or [])}
        for h in config.heads or []
    ]
    return {
        "tasks": tasks,
        "sources": about.sources,
        "cut": config.cut,
        **{key: about.recipe.get(key) for key in ("method", "calibrate", "width", "flops_budget")},
        "trunk": {"flops": trunk, "parameters": count_parameters(merged) - sum(parameters)},
        "heads": heads,
        "flops": total,
        "parameters": count_parameters(merged),
        "attention": about.kept_heads,
        "spaces": about.spaces,
    }


def merge_text(found: dict[str, Any]) -> str:
    """The result of `merge_inspection` as tables."""
    where = f"up to {found['cut']}" if found["cut"] else "in all common layers"
    size = f"flops-budget {found['flops_budget']:g}" if found["flops_budget"] else f"width {found['width'] or 1:g}"
    sources = [_named(source) for source in found["sources"]]
    tasks = [[t["task"], t["kind"], str(len(t["classes"])), sources[t["source"]]] for t in found["tasks"]]
    reads = [[t["task"], " + ".join(f"{r['step']} ({r['units']})" for r in t["reads"])] for t in found["tasks"]]
    costs = [["trunk", *_cost(found["trunk"])]]
    costs += [[f"head: {', '.join(head['tasks'])}", *_cost(head)] for head in found["heads"] if head["parameters"]]
    costs.append(["all tasks", *_cost(found)])
    what = "one model made smaller" if len(sources) == 1 else f"{len(sources)} models merged"
    spaces = [[s["name"], *(str(s[key]) for key in ("width", "shared", "within", "alone"))] for s in found["spaces"]]
    return "\n\n".join(
        [
            f"{what} by {found['method']} {where}; {size}, calibration {found['calibrate']}",
            table(["task", "kind", "classes", "from"], tasks),
            *([f"attention heads: those of all parents, {found['attention']} each"] if found["attention"] else []),
            *([table(["task", "reads from the trunk (units)"], reads)] if any(text for _, text in reads) else []),
            table(["one image", "FLOPs", "params"], costs),
            table(["space", "merged units", "shared", "within one model", "unmerged"], spaces),
            MERGE_LEGEND,
        ]
    )


def _reads(head: dict[str, Any], steps: Sequence[str]) -> list[dict[str, Any]]:
    """The steps of the trunk whose outputs a head reads, with their numbers of units."""
    return [{"step": steps[tap["step"]], "units": tap["size"]} for tap in head.get("taps", [])]


def _cost(part: dict[str, Any]) -> list[str]:
    return [si(part["flops"]), si(part["parameters"])]


def _named(source: dict[str, Any]) -> str:
    if source.get("id"):
        return f"{source['id']}@{str(source['revision'])[:7]}"
    return str(source.get("folder") or "a model in memory")
