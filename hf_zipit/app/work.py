"""What runs in a process of its own: a diagnosis, a merge, an upload. Everything comes and goes as plain values."""

import contextlib
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hf_zipit.commands.making import Made, Order, make
from hf_zipit.commands.merge import say_made
from hf_zipit.errors import DataError, OptionError
from hf_zipit.recipe import Recipe
from hf_zipit.sources.access import Access

SAMPLES = 8  # images to try a merge on, of all data sets together


@dataclass(frozen=True)
class Way:
    """A way to merge some models: up to which layer, and how wide.

    Attributes:
        name: for people.
        flops: of one image for all tasks, as a multiple of one model's.
        cut: where the shared part ends; `None` if all layers but the classifiers are shared.
        width: merged units per unit of one model.
        kept: mean share of the models' accuracy to expect; `None` if this way was not tried.
    """

    name: str
    flops: float
    cut: str | None = None
    width: float = 1.0
    kept: float | None = None


@dataclass(frozen=True)
class Look:
    """What is known of some models before they are merged.

    Attributes:
        recipe: the models, images and options.
        ways: the ways to merge them, the cheapest first.
        relation: how the models are related, in words; empty without a diagnosis.
        text: the diagnosis, as `hf-zipit diagnose` prints it.
        advice: what to do, one sentence each.
        control: what the trunk of one model alone keeps, and whose it is; `None` without a diagnosis.
        picture: the file of its picture; `None` without a diagnosis.
        unknown: why there is no diagnosis.
    """

    recipe: Recipe
    ways: tuple[Way, ...]
    relation: str = ""
    text: str = ""
    advice: tuple[str, ...] = ()
    control: tuple[str, float] | None = None
    picture: Path | None = None
    unknown: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A merge that was written.

    Attributes:
        folder: where it is.
        chosen: what was chosen and why, and the verdict, as `hf-zipit merge` prints them.
        summary: the verdict in one sentence; `None` if there is none.
        worth_it: whether the merge is better than the trunk of one model; `None` if that is unknown.
        table: the scores on labelled images, as `hf-zipit eval` prints them; empty without such images.
        picture: the file of a picture; `None` if there is nothing to draw.
        samples: files of some of the images.
    """

    folder: Path
    chosen: str
    summary: str | None = None
    worth_it: bool | None = None
    table: str = ""
    picture: Path | None = None
    samples: tuple[Path, ...] = field(default=())


def look(recipe: Recipe, access: Access, picture: Path) -> Look:
    """Find out how some models can be merged, and what to expect of it; nothing but the picture is written.

    Args:
        recipe: the models, images and options; it has no cut and no width.
        access: what the user allows when models are read.
        picture: the file to draw the diagnosis in.

    Raises:
        ZipItError: the models, the images or the options are wrong.
    """
    from hf_zipit.diagnosis.diagnose import diagnose
    from hf_zipit.diagnosis.report import diagnosis_text, plot_diagnosis

    ways = legal_ways(recipe, access)
    try:
        found = diagnose([str(source) for source in recipe.sources], recipe.data, recipe, access=access)
    except OptionError as error:  # of too few images above all: a merge needs fewer
        return Look(recipe, tuple(ways), unknown=str(error))
    tried = [Way(one.name, one.flops, one.cut, one.width, one.kept) for one in found.trials]
    names = {(one.cut, one.width) for one in tried}
    flops = {round(one.flops, 2) for one in tried}
    others = [way for way in ways if (way.cut, way.width) not in names and round(way.flops, 2) not in flops]
    return Look(
        recipe,
        tuple(sorted([_for_people(way) for way in tried] + others, key=lambda way: way.flops)),
        relation=found.relation,
        text=diagnosis_text(found),
        advice=found.advice,
        control=(found.control, found.control_kept),
        picture=plot_diagnosis(found, picture),
    )


def legal_ways(recipe: Recipe, access: Access) -> list[Way]:
    """A full merge and every legal cut of some models, with their costs; the cheapest first.

    Raises:
        ZipItError: the models or the options are wrong.
    """
    from hf_zipit.assembly.kinds import open_parents
    from hf_zipit.merging.automatic import likely
    from hf_zipit.merging.merge import check_recipe
    from hf_zipit.merging.provenance import task_names
    from hf_zipit.merging.sizing import sized_plan
    from hf_zipit.sources.load import load_source
    from hf_zipit.specs.cuts import cut_names

    check_recipe(recipe, len(recipe.sources), recipe.data)
    sources = [load_source(str(source), access=access) for source in recipe.sources]
    parents = open_parents(sources, recipe.spec, recipe.backbone)
    names = task_names(sources, recipe.tasks)
    cuts = cut_names(parents.binding) if parents.fixed_cut is None else {}
    found: dict[float, Way] = {}
    for cut in (parents.fixed_cut, *reversed(cuts)):
        named = cuts.get(cut or "") or cut  # the stage that ends there, if one does
        flops = parents.cost(names, sized_plan(parents, likely(recipe.changed(cut=cut)))).flops
        way = Way("", round(flops / parents.costs[0].flops, 3), named)
        found.setdefault(round(way.flops, 2), way)  # a cut at the same cost leaves the tasks nothing that counts
    return sorted(map(_for_people, found.values()), key=lambda way: way.flops)


def _for_people(way: Way) -> Way:
    """The same way with a name that explains itself."""
    if way.cut is not None:
        return replace(way, name=f"share the layers up to {way.cut}")
    return replace(way, name="share all layers" + (f", {way.width:g} times as wide" if way.width != 1 else ""))


def merge(order: Order, drawn: Path) -> Outcome:
    """Merge as `hf-zipit merge` does, and keep what it says.

    Args:
        order: what is to be made, and where it goes.
        drawn: a folder for pictures, which exists.

    Raises:
        ZipItError: the models, the images or the options are wrong, or the result cannot be written.
    """
    from hf_zipit.evaluation.report import result_table

    made: list[Made] = []
    with contextlib.redirect_stdout(io.StringIO()):
        make(order, made.append)
    (one,) = made
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        say_made(one)
    assert order.out is not None
    verdict = one.about.verdict or {}
    return Outcome(
        order.out,
        said.getvalue().strip(),
        summary=_summary(verdict) if verdict else None,
        worth_it=verdict.get("worth_it"),
        table=result_table(one.rows, one.model.config.tasks) if one.rows else "",
        picture=_picture(order.out, one, drawn),
        samples=tuple(_samples(order.recipe, order.access, drawn)),
    )


def _summary(verdict: dict[str, Any]) -> str:
    """The last paragraph of a verdict."""
    from hf_zipit.merging.verdict import verdict_text

    return verdict_text(verdict).rpartition("\n\n")[2]


def _picture(folder: Path, made: Made, drawn: Path) -> Path | None:
    """The picture of the results, or else one of what was merged with what."""
    from hf_zipit.evaluation.card_results import PICTURE
    from hf_zipit.evaluation.report import plot_composition

    if (folder / PICTURE).is_file():
        return folder / PICTURE
    return plot_composition(made.about.spaces, drawn / "merged.png") if made.about.spaces else None


def _samples(recipe: Recipe, access: Access, drawn: Path) -> Iterator[Path]:
    """Some images of every data set, as files; none of data sets without pictures."""
    from hf_zipit.data.rows import TRAIN, rows_of
    from hf_zipit.data.stored import PIXELS, StoredImages, image_column, stored_rows

    refs = list(dict.fromkeys(recipe.data or []))
    for number, ref in enumerate(refs):
        rows, name = rows_of(ref, TRAIN, access.token)
        column = image_column(rows, name)
        each = min(max(2, SAMPLES // len(refs)), len(rows))
        chosen = [] if column == PIXELS else [(2 * place + 1) * len(rows) // (2 * each) for place in range(each)]
        stored = StoredImages(stored_rows(rows, column), column, chosen, name, None, 3)
        for place in range(len(chosen)):
            file = drawn / f"image-{number}-{place}.png"
            with contextlib.suppress(DataError):  # of an image that cannot be decoded, which a merge may leave out
                stored.picture(place).save(file)
                yield file


def upload(folder: Path, repo: str, token: str | None, private: bool) -> str:
    """Upload a merge to the Hub, and return the address of the commit.

    Args:
        folder: the merge.
        repo: the repository, `user/name`.
        token: an access token; by default that of `HF_TOKEN` or `hf auth login`.
        private: visibility of a new repository.

    Raises:
        ZipItError: the repository cannot be written, or the folder holds no merge.
    """
    from hf_zipit.saving.push import push

    if token:
        os.environ["HF_TOKEN"] = str(Access(token).token).strip()  # of this process alone; no message shows it
    return push(folder, repo, private=private or None)


def tidy(folder: Path, above: Sequence[Path], since: float | None = None) -> None:
    """Remove what a merge left that was cancelled or killed.

    Args:
        folder: what it wrote; it was not there before, or empty.
        above: folders that it may have created for it, the deepest first.
        since: when it began, in seconds since the epoch, if it was cancelled: a result that was just complete goes too.
    """
    from hf_zipit.files.folders import recover

    config = folder / "config.json"
    if since is not None and config.is_file() and config.stat().st_mtime >= since:
        shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        recover(folder)
    for path in above:
        with contextlib.suppress(OSError):  # it holds something, or was never created
            path.rmdir()
