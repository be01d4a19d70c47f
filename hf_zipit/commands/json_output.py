"""What the commands print with `--json`: one object, whose first key names its schema and version.

Within one version keys are only added. A key that has no value for this model or merge may be `null` or missing.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import typer

from hf_zipit.matching.options import Options

VERSION = 1
SCHEMA = "schema"
_MADE = {
    "folder": "where it was written",
    "address": "where it was uploaded; `null` if it was not",
    "tasks": "names of the tasks, in the order of the models",
    "cut": "the last step that is merged; `null` if all are",
    "generator": "the version of hf-zipit",
    "sources": "one entry per model: `id` and `revision`, or `folder` and `path`; `sha256` of its weights; its license",
    "recipe": "the options, as in a recipe file",
    "data": "one entry per data set: `name`, `num_images`, and `ref` or `folder`",
    "spaces": "one entry per feature space: `name`, `width`, and how many units are `shared`, `within` or `alone`; "
    "`dense` for linear combinations",
    "balance": "how `--balance auto` chose: `by` which criterion, and the values `tried`",
    "choice": "why `auto` chose what the recipe holds: `reasons`, and the methods `tried`",
    "verdict.images": "number of held-out images",
    "verdict.tasks": "for each task: `images`, and the shares `agreement`, `control`, `chance`, `kept` and `expected`",
    "verdict.joint": "share of equal answers among the classes of all tasks",
    "verdict.control": "the parent whose trunk does best alone",
    "verdict.kept": "share of the parents' accuracy that the merge should keep",
    "verdict.control_kept": "the same of that trunk",
    "verdict.advice": "what to do, one sentence each",
    "verdict.worth_it": "whether the merge keeps at least 0.01 more than that trunk",
    "kept": "of `fold`: the spaces that are as wide as before, by the reason",
}
_SCORES = {
    "flops": "of one forward pass of one image, for all its tasks",
    "parameters": "for all its tasks",
    "tasks": "for each task: its accuracy among its own classes, or its first metric",
    "average": "the mean over tasks",
    "joint": "accuracy among the classes of all tasks",
    "distance": "squared distance of the outputs from the parents', as a share of their variance",
    "images": "for each task: the number of images that are counted",
    "scores": "for each task: its metrics, if tasks differ in kind",
    "correlation": "for each space: the correlation of merged units with those of the parents",
    "seconds": "how long the merge took",
    "latency": "milliseconds of a forward pass, by the number of images",
    "error": "why the merge could not be made",
}
_DECISIONS = [name for name in Options.model_fields if name != "method"]
OUTPUTS: dict[str, dict[str, str]] = {
    "merge": _MADE,
    "plan": {
        "models": "for each model: its parameters",
        "download": "for each model: bytes to download",
        "data": "for each data set on the Hub: bytes to download; `null` if unknown",
        "spec": "the model family that the spec describes",
        "spaces": "for each space: the number of merged units",
        "cut": "the last step that is merged; `null` if all are",
        "cuts": "for each legal cut: the stage that it ends, or `null`",
        "flops": "of one forward pass of one image, with all heads",
        "parameters": "of the merge; `null` with a budget",
        "parents_flops": "of all models",
        "parents_parameters": "of all models",
        "heads": "for each layer that keeps the attention heads of all models: their number",
        "memory": "bytes for `parents`, `images`, `statistics`, `merged` and `refit`",
        "note": "what the numbers leave out",
    },
    "eval": {"rows[].model": "`merged`, `parent:TASK` or `ensemble`"} | {f"rows[].{k}": v for k, v in _SCORES.items()},
    "compare": {
        "rows[].method": "method of the merge, `parent:TASK` or `ensemble`",
        "rows[].model": "of parents and the ensemble: the same as `method`",
        **{f"rows[].{name}": "as in a recipe file" for name in (*_DECISIONS, "cut", "calibrate", "seed")},
        **{f"rows[].{key}": text for key, text in _SCORES.items()},
        "rows[].pairs": "of `--pairs`, where rows are means over pairs and `parent:1` is the first model: their number",
        "rows[].deviation": "of `--pairs`: sample standard deviations of `average`, `joint` and `distance`",
        "pairs[].name": "of `--pairs`: name of a pair",
        "pairs[].rows": "its rows, as without `--pairs`",
    },
    "diagnose": {
        "models": "names of the models",
        "relation": "how they are related",
        "method": "method of the trials",
        "calibrate": "their calibration",
        "control": "the parent whose trunk does best alone",
        "control_kept": "share of the parents' accuracy that it keeps",
        "trials[].name": "name of a way to merge",
        "trials[].cut": "its cut",
        "trials[].width": "its width",
        "trials[].flops": "its FLOPs for all tasks, relative to one model",
        "trials[].kept": "share of the parents' accuracy that it should keep",
        "trials[].tasks": "as in the verdict of a merge",
        "survival": "width -> stage -> for each model: share of the variance of its units that the merged ones hold",
        "recommended": "budget -> the best trial within it",
        "advice": "what to do, one sentence each",
        "merge": "whether any trial is better than the trunk of one parent",
    },
    "inspect": {
        "family": "the model family that the spec describes",
        "spaces[].name": "name of a feature space",
        "spaces[].size": "number of units",
        "spaces[].groups": "number of groups that move as a whole; 1 if units are free",
        "cuts[].name": "the step that a cut follows",
        "cuts[].space": "the feature space there",
        "cuts[].stage": "the stage that ends there, or `null`",
        "cuts[].trunk_flops": "FLOPs before the cut",
        "cuts[].flops": "FLOPs of the whole model",
        "cuts[].trunk_parameters": "parameters before the cut",
        "cuts[].parameters": "parameters of the whole model",
    },
    "inspect-merge": {
        "tasks[].task": "name of a task",
        "tasks[].kind": "what its model does, such as `image-classification`",
        "tasks[].classes": "names of its classes",
        "tasks[].source": "number of the model that it comes from",
        "tasks[].reads": "the steps of the trunk that it reads, with their numbers of units",
        "sources": "as of `merge`",
        "cut": "the last step that is merged; `null` if all are",
        "method": "how units were matched",
        "calibrate": "how the merge was calibrated",
        "width": "merged units per unit of one model",
        "flops_budget": "the budget, if there was one",
        "trunk.flops": "FLOPs of the shared layers",
        "trunk.parameters": "parameters of the shared layers",
        "heads[].tasks": "the tasks that read a head",
        "heads[].flops": "its FLOPs",
        "heads[].parameters": "its parameters",
        "flops": "of one forward pass of one image, with all heads",
        "parameters": "of the merge",
        "attention": "what became of the attention heads",
        "spaces": "as of `merge`",
    },
    "export": {
        "folder": "the folder of an ordinary checkpoint",
        "file": "the file of the formats `onnx` and `torch`",
        "format": "the format",
        "tasks": "the tasks that were exported",
        "outputs": "names of the main outputs of such a file",
    },
    "push": {"folder": "what was uploaded", "repository": "the repository", "address": "its address"},
    "recipe": {"recipe": "the options, with all defaults"},
    "trace": {
        "file": "where the spec was written; `null` if it was not",
        "spec": "the spec",
        "held": "how much of the model the spec holds fixed, and why",
    },
    "check-spec": {
        "family": "the model family",
        "spaces": "number of feature spaces",
        "grouped": "how many of them have groups",
        "rows": "number of axes of parameters that belong to a space",
        "cuts": "number of legal cuts",
        "difference": "largest change of the logits when every space is permuted",
        "unseen": "operations because of which the trace holds units fixed",
        "held": "what the spec holds fixed although it is free in the model",
        "not_traced": "why the model could not be traced, or empty",
    },
    "cache": {
        "folder": "where statistics are kept",
        "limit": "bytes that they may take",
        "freed": "bytes that `--clear` has removed",
        "entries[].id": "name of the entry",
        "entries[].models": "the models",
        "entries[].data": "the data sets",
        "entries[].spaces": "number of feature spaces",
        "entries[].bytes": "its size",
        "entries[].used": "when it was last used, in seconds since 1970",
    },
}


def show_json(kind: str, value: Mapping[str, Any]) -> None:
    """Print a result as JSON.

    Args:
        kind: its schema, a key of `OUTPUTS`.
        value: the result.
    """
    typer.echo(json.dumps({SCHEMA: f"hf-zipit/{kind}/{VERSION}", **value}, indent=2))


def undocumented(output: Mapping[str, Any]) -> list[str]:
    """The keys of an output that its schema does not have.

    >>> undocumented({"schema": "hf-zipit/push/1", "folder": "merged", "when": "now"})
    ['when']
    """
    kind = str(output[SCHEMA]).split("/")[1]
    known = OUTPUTS[kind]
    return sorted({key for key in _keys(output, known) if key not in known and key != SCHEMA})


def _keys(value: Mapping[str, Any], known: Mapping[str, str], prefix: str = "") -> Iterator[str]:
    """The keys of an output, down to the level that the schema describes."""
    for name, inner in value.items():
        key = f"{prefix}{name}"
        if isinstance(inner, Mapping) and any(one.startswith(f"{key}.") for one in known):
            yield from _keys(inner, known, f"{key}.")
        elif isinstance(inner, list) and any(one.startswith(f"{key}[].") for one in known):
            for entry in inner:
                yield from _keys(entry, known, f"{key}[].")
        elif inner is not None:
            yield key
