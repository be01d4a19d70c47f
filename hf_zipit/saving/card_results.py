"""What a model card says of how good a merge is: its verdict without labels, and the results of an evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard

from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.text import markdown_cell as cell
from hf_zipit.text import percent, si

Results = Mapping[str, Any]  # {"data": [name, ...], "rows": [row as in `evaluate`, ...], "plot": file name or None}
BEGIN, END = "<!-- hf-zipit: results -->", "<!-- hf-zipit: end of results -->"
CLASSIFICATION = "image-classification"


def with_results(card: str, config: ZipItConfig, results: Results) -> str:
    """A card with the results of an evaluation in place of any earlier ones; everything else is kept."""
    known = ModelCard(card, ignore_metadata_errors=True)
    for key, value in _evaluation_metadata(config, results).items():
        known.data[key] = value
    before, found, rest = known.text.partition(BEGIN)
    after = rest.partition(END)[2] if found else ""
    text = f"{before.strip()}\n\n{BEGIN}\n{results_text(results, config.tasks)}\n{END}{after}"
    return f"---\n{known.data.to_yaml()}\n---\n\n{text}"


def verdict_text(verdict: Mapping[str, Any] | None) -> str:
    """The verdict on a merge as a Markdown section; empty if there is none.

    Args:
        verdict: as `Verdict.to_dict` gives it.
    """
    if verdict is None:
        return ""
    control = verdict["control"]
    columns = {"agreement": "answers as its parent", "control": f"control: trunk of {cell(str(control))} alone"}
    columns |= {"chance": "by chance", "expected": "expected accuracy"}
    tasks = verdict["tasks"]
    shown = [key for key in columns if any(one[key] is not None for one in tasks.values())]
    head = ["task", "images", *(f"{columns[key]}, %" for key in shown)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for task, one in tasks.items():
        lines.append(f"| {cell(task)} | {one['images']} | {' | '.join(percent(one[key]) for key in shown)} |")
    made_of = "its parent" if control is None else "its parents"
    said = f"How often the model answers as {made_of}, on held-out images without labels. It should keep "
    said += f"{percent(verdict['kept'])} % of the accuracy of {made_of}"
    if verdict["control_kept"] is not None:
        said += f"; the control keeps {percent(verdict['control_kept'])} %"
        said += ". The control is the trunk of one parent, with the heads of all tasks fitted to it"
    advice = [f"- {sentence}" for sentence in verdict["advice"]]
    return "\n".join(["## Verdict", "", f"{said}.", "", *lines, *(["", *advice] if advice else [])])


def _evaluation_metadata(config: ZipItConfig, results: Results) -> dict[str, Any]:
    """The metadata of an evaluation: the accuracy of each task, and the joint accuracy."""
    merged = next(row for row in results["rows"] if row["model"] == "merged")
    names = list(results["data"])
    each = names if len(names) == len(config.tasks) else names * len(config.tasks)
    found = []
    for task, name in zip(config.tasks, each, strict=False):
        scores = merged.get("scores", {}).get(task) or {"accuracy": merged["tasks"][task]}
        within = ", among its own classes" if "scores" not in merged else ""
        found += [(name, metric, f"{metric} on {task}{within}", value) for metric, value in scores.items()]
    if merged.get("joint") is not None:
        joint = "joint accuracy, among the classes of all tasks"
        found.append((" and ".join(names), "accuracy", joint, merged["joint"]))
    entries = [
        EvalResult(
            task_type=CLASSIFICATION,
            dataset_type=name,
            dataset_name=name,
            metric_type=kind,
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for name, kind, metric, value in found
    ]
    metrics = list(dict.fromkeys(kind for _, kind, _, _ in found))
    return {"model_name": f"{' + '.join(config.tasks)}, merged", "eval_results": entries, "metrics": metrics}


def results_text(results: Results | None, tasks: Sequence[str], several: bool = False) -> str:
    """The results as a Markdown section, or how to get them."""
    if not results and several:
        return "Not evaluated yet. `hf-zipit eval FOLDER --data DATA` reports each task's own metric."
    if not results:
        return "Not evaluated yet. `hf-zipit eval FOLDER --data DATA --update-card` adds the results here."
    lines = ["## Results", "", _measured(results, tasks), ""]
    if any(row.get("scores") for row in results["rows"]):
        return "\n".join([*lines, *_metric_lines(results, tasks)])
    lines.append(f"| | {' | '.join(map(cell, tasks))} | average | joint | FLOPs | parameters |")
    lines.append("|---" * (len(tasks) + 5) + "|")
    for row in results["rows"]:
        accuracies = [f"{100 * row['tasks'][task]:.1f}" if task in row["tasks"] else "-" for task in tasks]
        accuracies += [f"{100 * row[key]:.1f}" if row.get(key) is not None else "-" for key in ("average", "joint")]
        cost = [si(row["flops"]), si(row["parameters"])]
        lines.append(f"| {' | '.join([cell(row['model']), *accuracies, *cost])} |")
    lines += [
        "",
        "The accuracy of a task is among its own classes. `joint` is among the classes of all tasks: softmax per task,",
        "then argmax over all. FLOPs are for one image.",
    ]
    if results.get("plot"):
        lines += ["", f"![Accuracy against cost]({results['plot']})"]
    return "\n".join(lines)


def _measured(results: Results, tasks: Sequence[str]) -> str:
    """What was measured, on which data, and over how many images."""
    merged = next(row for row in results["rows"] if row["model"] == "merged")
    counts = ", ".join(f"{cell(task)} {merged['images'][task]}" for task in tasks if task in merged.get("images", {}))
    what = "Scores" if merged.get("scores") else "Accuracy in percent"
    return f"{what} on {', '.join(results['data'])}" + (f"; images: {counts}." if counts else ".")


def _metric_lines(results: Results, tasks: Sequence[str]) -> list[str]:
    """A table of each task's own metrics."""
    merged = next(row for row in results["rows"] if row["model"] == "merged")
    names = [(task, metric) for task in tasks for metric in merged["scores"].get(task, {})]
    lines = [f"| | {' | '.join(f'{cell(task)}: {metric}' for task, metric in names)} | FLOPs | parameters |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for row in results["rows"]:
        values = [row["scores"].get(task, {}).get(metric) for task, metric in names]
        shown = ["-" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"| {' | '.join([cell(row['model']), *shown, si(row['flops']), si(row['parameters'])])} |")
    return lines
