"""A diagnosis as text and as a picture."""

from pathlib import Path
from typing import Any

from hf_zipit.diagnosis.diagnose import Diagnosis, Trial
from hf_zipit.evaluation.report import blank_figure
from hf_zipit.text import percent, table


def diagnosis_text(found: Diagnosis) -> str:
    """The relation, what survives of each stage, what to expect of each trial, the recommendations and the advice."""
    head = ["way to merge", "FLOPs", "keeps %", *(f"{task} agrees %" for task in found.trials[0].tasks)]
    rows = [_row(trial.name, f"{trial.flops:.2f}x", trial.kept, _agreements(trial)) for trial in found.trials]
    cost = f"{found.trials[0].flops:.2f}x"  # as of a full merge
    rows.append(_row(f"control: trunk of {found.control}", cost, found.control_kept, _controls(found.trials[0])))
    parts = [f"Relation: {found.relation}", _survival_table(found), table(head, rows)]
    for budget, name in found.recommended.items():
        parts.append(f"Within {budget}x FLOPs: {name}")
    parts += [f"Note: {sentence}." for sentence in found.advice]
    text = "\n\n".join(parts[:3])
    return "\n".join([text, "", *parts[3:]])


def _survival_table(found: Diagnosis) -> str:
    """What survives of every stage, by model and width."""
    stages = list(next(iter(found.survival.values())))
    head = [f"variance held of {' / '.join(found.models)}, %", *(f"width {width}" for width in found.survival)]
    rows = [[stage, *(_shares(mine[stage]) for mine in found.survival.values())] for stage in stages]
    return table(head, rows)


def _shares(values: list[float]) -> str:
    return " / ".join(f"{100 * value:.0f}" for value in values)


def _row(name: str, cost: str, kept: float, agreements: list[float | None]) -> list[str]:
    return [name, cost, *map(percent, [kept, *agreements])]


def _agreements(trial: Trial) -> list[float | None]:
    return [one.agreement for one in trial.tasks.values()]


def _controls(trial: Trial) -> list[float | None]:
    return [one.control for one in trial.tasks.values()]


def plot_diagnosis(found: Diagnosis, path: str | Path) -> Path:
    """A picture: what every trial should keep against its FLOPs, and beneath it what survives of each stage.

    Args:
        found: the diagnosis.
        path: the PNG file to write.

    Raises:
        OptionError: matplotlib is not installed.
    """
    figure = blank_figure(9, 7.5)
    upper, lower = figure.subplots(2, 1, height_ratios=(1.6, 1))
    _trials(upper, found)
    _stages(lower, found)
    figure.savefig(path, dpi=150)
    return Path(path)


def _trials(axes: Any, found: Diagnosis) -> None:
    """Expected accuracy against cost."""
    best = set(found.recommended.values())
    for trial in found.trials:
        mark = {"marker": "*", "s": 220} if trial.name in best else {"marker": "o", "s": 60}
        wider = trial.name.startswith("--width")
        colour = "C1" if wider else "C0"
        axes.scatter(trial.flops, 100 * trial.kept, color=colour, zorder=3, **mark)
        axes.annotate(
            trial.name.removeprefix("--"),
            (trial.flops, 100 * trial.kept),
            xytext=(0, 9) if wider else (0, -15),  # a cut often costs about as much as a width
            ha="center",
            textcoords="offset points",
            fontsize=8,
        )
    label = f"the trunk of {found.control} alone, heads fitted to it"
    axes.axhline(100 * found.control_kept, color="C3", ls="--", lw=1.2, label=label)
    axes.axhline(100, color="grey", ls=":", lw=1, label="the parents themselves, one after the other")
    axes.scatter([], [], marker="*", s=120, color="grey", label="best within 1x, 1.25x or 1.5x")
    axes.set(
        xlabel="FLOPs for all tasks, relative to one model",
        ylabel="accuracy kept, % of the parents'",
        title="What to expect of a merge, by cost",
    )
    axes.margins(x=0.12, y=0.12)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")


def _stages(axes: Any, found: Diagnosis) -> None:
    """What survives of each stage."""
    widths = list(found.survival)
    stages = list(found.survival[widths[0]])
    rows = [(w, k) for w in widths for k in range(len(found.survival[w][stages[0]]))]
    values = [[100 * found.survival[w][stage][k] for stage in stages] for w, k in rows]
    image = axes.imshow(values, aspect="auto", vmin=0, vmax=100, cmap="viridis")
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            axes.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color="w" if value < 60 else "k")
    axes.set_xticks(range(len(stages)), stages, rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{found.models[k]}, width {w}" for w, k in rows], fontsize=8)
    axes.set_title("Variance of each model's units that the merged units hold, %", fontsize=10)
    axes.figure.colorbar(image, ax=axes, label="%")
