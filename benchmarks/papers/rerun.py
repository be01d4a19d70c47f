"""What the scripts in this folder share: pairs are trained, merged, and printed beside the figures of a paper."""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from cifar import class_count, halves
from cifar_pairs import Training, train

from hf_zipit.comparison.grid import Grid
from hf_zipit.comparison.pairs import mean_results
from hf_zipit.comparison.report import write_report
from hf_zipit.comparison.run import Comparison
from hf_zipit.evaluation.results import Result
from hf_zipit.merging.merger import Merger
from hf_zipit.recipe import Recipe
from hf_zipit.text import table

OURS = (
    ("select", "refit"),
    ("select", "refit-joint"),
    ("zip", "refit"),
    ("random", "refit"),
    ("first-parent", "refit"),
)
Figures = tuple[float | None, float | None]  # task average and joint accuracy, in percent


@dataclass(frozen=True)
class Setting:
    """One table of a paper.

    Attributes:
        title: what it is, and where.
        data: `cifar10` or `cifar100`.
        training: how each parent is trained.
        published: the paper's figures by row: a method, or a method and a cut or width, or `ensemble`.
        split: of the classes, as of `halves`; by default every pair has another seed.
        base: the data set of a model from which both parents are fine-tuned.
        cuts: for which the methods of the paper are run, besides a merge of all layers.
        widths: for which they are run, besides 1.
        differs: how the setting departs from the paper's, beyond what holds for all.
    """

    title: str
    data: str
    training: Training
    published: Mapping[str, Figures]
    split: str | None = None
    base: str | None = None
    cuts: Sequence[str] = ()
    widths: Sequence[float] = ()
    differs: str = ""


@dataclass(frozen=True)
class Scale:
    """How large a run is.

    Attributes:
        width: upper limit on the width of a model.
        epochs: of each training.
        pairs: how many pairs of models.
        images: unlabelled images for the merges.
        tested: test images; `None` for all.
        note: what is said of it.
    """

    width: float | None
    epochs: int
    pairs: int
    images: int
    tested: int | None
    note: str


SCALES = {
    "quick": Scale(1, 1, 1, 200, 500, "A quick run: models of width 1, hardly trained. No evidence."),
    "cpu": Scale(1, 6, 1, 500, 2000, "Narrow models, briefly trained."),
    "gpu": Scale(None, 40, 3, 1000, None, ""),
}


@dataclass
class Run:
    """What was asked for on the command line."""

    data: dict[str, str]
    out: Path
    scale: Scale
    chosen: Sequence[int] = field(default_factory=list)


def rerun(paper: str, settings: Sequence[Setting], about: str) -> None:
    """The program of a script: train, merge, and print a table for each setting.

    Args:
        paper: name of the paper, as in `hf-zipit compare --methods paper:NAME`.
        settings: its tables.
        about: the help text.
    """
    run = asked(about, settings)
    if run.scale.note:
        print(run.scale.note)
    for number, setting in enumerate(settings, 1):
        if not run.chosen or number in run.chosen:
            made = fitting(setting, run.scale)
            folder = run.out / f"{paper}-{number}"
            rows = mean_results(*zip(*_reports(paper, made, run, folder), strict=True))
            write_report(rows, ["a", "b"], folder)
            print(f"\n{number}. {setting.title}")
            print(f"here: width {made.training.width:g}, {made.training.epochs} epochs, {run.scale.pairs} pair(s)")
            if setting.differs:
                print(setting.differs)
            print(_beside(rows, setting.published), flush=True)


def _reports(paper: str, setting: Setting, run: Run, folder: Path) -> Iterator[tuple[list[Result], str]]:
    """The results of each pair, and its name."""
    for number in range(run.scale.pairs):
        parents = parents_of(setting, run, number)
        options = {"tasks": ["a", "b"], "num_images": run.scale.images, "verdict": False}
        merger = Merger(parents, run.data[setting.data], **options)
        comparison = Comparison(
            merger, folder / f"pair-{number + 1}", run.data[setting.data], num_images=run.scale.tested
        )
        yield comparison.run(list(merges_of(paper, setting, merger))), f"pair-{number + 1}"


def merges_of(paper: str, setting: Setting, merger: Merger) -> Iterator[Recipe]:
    """The merges of a table: those of the paper, then ours; all at every cut and width."""
    sizes = {"cuts": [None, *setting.cuts], "widths": [1.0, *setting.widths]}
    yield from Grid([f"paper:{paper}"], **sizes).recipes(merger)
    for method, calibrate in OURS:
        yield from Grid([method], calibrations=[calibrate], **sizes).recipes(merger)


def parents_of(setting: Setting, run: Run, number: int) -> list[Path]:
    """The folders of a pair; models that are not there yet are trained."""
    how, data = setting.training, run.data[setting.data]
    name = f"{setting.data}-{how.model}-w{how.width:g}-{how.targets}-e{how.epochs}"
    if setting.base:
        base = run.out / "models" / f"{setting.base}-{how.model}-w{how.width:g}-base-e{how.epochs}"
        classes = list(range(class_count(run.data[setting.base])))
        _trained(replace(how, targets="labels"), run.data[setting.base], classes, 0, base)
        how, name = replace(how, base=base), f"{name}-tuned"
    split = setting.split or str(number)
    found = []
    for half, classes in enumerate(halves(class_count(data), split)):
        init = 2 * number + half
        out = run.out / "models" / f"{name}-s{split}-{'ab'[half]}-i{init}"
        _trained(how, data, classes, init, out)
        found.append(out)
    return found


def _trained(how: Training, data: str, classes: list[int], init: int, out: Path) -> None:
    if not (out / "model.safetensors").exists():
        train(how, data, classes, init, init, out)


def fitting(setting: Setting, scale: Scale) -> Setting:
    """The setting with the width and the epochs of a scale."""
    how = setting.training
    width = how.width if scale.width is None else min(how.width, scale.width)
    return replace(setting, training=replace(how, width=width, epochs=scale.epochs))


def _beside(rows: Sequence[Result], published: Mapping[str, Figures]) -> str:
    """The results as a table, with the figures of the paper beside them."""
    lines = []
    for row in rows:
        if row.error:
            lines.append([label_of(row), "-", row.error, "", "", ""])
            continue
        theirs = published.get(label_of(row), (None, None)) if _of_paper(row) else (None, None)
        ours = [_figure(row.average, row.deviation.get("average")), _figure(row.joint, row.deviation.get("joint"))]
        lines.append([label_of(row), str(row.settings.get("calibrate") or "-"), *ours, *map(_plain, theirs)])
    return table(["merge", "calibrate", "average", "joint", "paper: average", "joint"], lines)


def _of_paper(row: Result) -> bool:
    """Whether the paper has such a row: its methods have no refit."""
    return not str(row.settings.get("calibrate") or "").startswith("refit")


def label_of(row: Result) -> str:
    """A row as papers name it: `zip`, `zip, cut layer2`, `partial-ot, width 1.5`, `ensemble`."""
    cut, width = row.settings.get("cut"), row.settings.get("width", 1)
    parts = [row.model, *([f"cut {cut}"] if cut else []), *([f"width {width:g}"] if width != 1 else [])]
    return ", ".join(parts)


def _figure(value: float | None, deviation: float | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def asked(about: str, settings: Sequence[Setting]) -> Run:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    needed = dict.fromkeys(name for one in settings for name in (one.data, one.base) if name)
    for name in needed:
        parser.add_argument(f"--{name}", default=f"uoft-cs/{name}", help="folder of parquet files, or Hub id")
    parser.add_argument("--out", type=Path, default=Path("papers"), help="folder for models and reports")
    titles = "; ".join(f"{i}: {re.sub('%', '%%', one.title)}" for i, one in enumerate(settings, 1))
    parser.add_argument("--only", type=int, nargs="+", default=[], help=f"settings: {titles}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_const", dest="scale", const="quick", help="minutes on a CPU; no evidence"
    )
    size.add_argument("--gpu", action="store_const", dest="scale", const="gpu", help="the paper's widths, three pairs")
    parser.add_argument("--pairs", type=int, help="pairs of models; by default one, or three with --gpu")
    parser.add_argument(
        "--width", type=float, help="upper limit on the width of a model; by default 1, or none with --gpu"
    )
    given = parser.parse_args()
    if any(number is not None and not number > 0 for number in (given.pairs, given.width)):
        parser.error("--pairs and --width take numbers above 0")
    data = {name: getattr(given, name) for name in needed}
    scale = SCALES[given.scale or "cpu"]
    scale = replace(scale, pairs=given.pairs or scale.pairs, width=given.width or scale.width)
    return Run(data, given.out, scale, given.only)
