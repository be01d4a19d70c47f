"""What the commands have in common that make a model and write it: `merge` and `fold`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.terminal import show, show_aside
from hf_zipit.errors import OptionError
from hf_zipit.recipe import SUFFIXES, Recipe, read_recipe
from hf_zipit.sources.access import Access


@dataclass(frozen=True)
class Order:
    """What is to be made, and where it goes.

    Attributes:
        recipe: the models, images and options.
        access: what the user allows when models are read.
        out: the folder; by default the name of the repository, or of the models.
        overwrite: whether to replace an earlier result in it.
        library: its format, as for `saving.save`.
        license: its license; by default that of the models.
        eval_data: labelled images to evaluate it on.
        require: share of held-out images on which every task must answer as its parent.
        push_to: a Hub repository to upload it to.
        upload: options of the upload.
        as_json: whether to print the result as JSON.
    """

    recipe: Recipe
    access: Access
    out: Path | None = None
    overwrite: bool = False
    library: str = "zipit"
    license: str | None = None
    eval_data: Sequence[str] | None = None
    require: float | None = None
    push_to: str | None = None
    upload: dict[str, Any] = field(default_factory=dict)
    as_json: bool = False

    def check(self) -> None:
        """Refuse options that contradict each other.

        Raises:
            OptionError: the message names the flag.
        """
        recipe = self.recipe
        if self.require is not None and not 0 <= self.require <= 1:
            raise OptionError(f"--require is {self.require:g}: give a share between 0 and 1, such as 0.9 for 90 %")
        if self.require is not None and not recipe.verdict:
            raise OptionError(f"--require is {self.require:g}, which takes a verdict: leave out --no-verdict")
        if self.library != "zipit" and (recipe.cut is not None or recipe.flops_budget is not None):
            raise OptionError(
                f"--format {self.library} has one width for all layers and no heads per task: leave out --cut and "
                "--flops-budget"
            )
        if self.eval_data and self.library != "zipit":
            raise OptionError("--eval-data needs --format zipit: make it in that format, then use `hf-zipit export`")


@dataclass(frozen=True)
class Made:
    """A model that was made.

    Attributes:
        model: the model.
        sources: what it was made of.
        rows: results of its evaluation; none without labelled images.
        about: its provenance.
    """

    model: Any
    sources: Sequence[Any]
    rows: Sequence[Any]
    about: Any


def recipe_of(models: Sequence[str], given: dict[str, Any]) -> Recipe:
    """The recipe of a command: of models and flags, or of a recipe file that they override."""
    if not models[0].endswith(SUFFIXES):
        return Recipe(sources=list(models), **given)
    file, *others = models
    sources = {"sources": others} if others else {}
    return read_recipe(file, **sources, **given)


def plan(order: Order) -> None:
    """Show what would be made and what it costs."""
    from hf_zipit.merging.dry_run import plan_merge, plan_text

    found = plan_merge(order.recipe, order.access, order.library, order.license)
    show_json("plan", found.to_dict()) if order.as_json else show(plan_text(found))


def make(order: Order, say: Callable[[Made], None]) -> None:
    """Make a model, say how good it is, and write it; the main process alone says and writes anything.

    Args:
        order: what is to be made.
        say: says what was made; not called for JSON.

    Raises:
        OptionError: an option is out of range.
        OutputError: the model is not as good as required; nothing is written.
    """
    recipe, out, push_to = order.recipe, order.out, order.push_to
    out = out or _default_folder(order)
    from hf_zipit.data.batches import make_accelerator
    from hf_zipit.evaluation.card_results import add_results
    from hf_zipit.merging.merge import check_recipe, merge_recipe
    from hf_zipit.merging.verdict import check_required
    from hf_zipit.saving import push as hub
    from hf_zipit.saving import save as saving
    from hf_zipit.saving.provenance import Provenance

    check_recipe(recipe, len(recipe.sources), recipe.data)
    saving.check_output(out, order.overwrite)
    if push_to is not None:
        hub.check_target(push_to, revision=order.upload["revision"], create_pr=order.upload["create_pr"])
    opened: list[Any] = []  # the evaluation, if there is to be one, and the sources
    merged = merge_recipe(recipe, order.access, lambda found, sources: opened.extend(_checked(order, found, sources)))
    evaluation, sources = opened
    main = make_accelerator().is_main_process
    rows = evaluation.results(merged, sources) if evaluation and main else []
    about = Provenance.of(merged.config)
    if main and not order.as_json:
        say(Made(merged, sources, rows, about))
    if order.require is not None:
        check_required(about.verdict, order.require)
    if not main:
        return
    saving.save(merged, out, overwrite=order.overwrite, library=order.library, license=order.license)
    if order.eval_data:
        add_results(out, merged.config, rows, order.eval_data)
    address = None if push_to is None else hub.push(out, push_to, **order.upload)
    if order.as_json:
        record = Provenance.of(merged.config).to_dict()
        place = {"folder": str(out), "address": address}
        show_json("merge", {**place, "tasks": merged.config.tasks, "cut": merged.config.cut, **record})
    else:
        show(address or out)


def _default_folder(order: Order) -> Path:
    """Where the result goes without `--out`: the name of the repository, or a new folder named after the models."""
    if order.push_to is not None:
        return Path(order.push_to.rpartition("/")[2])
    refs = [source if isinstance(source, str) else source.ref or "" for source in order.recipe.sources]
    models = [Path(ref.partition("@")[0]).name for ref in refs]
    name = "-".join(["merged" if len(models) > 1 else "smaller", *filter(None, models)])
    folder = next(folder for folder in _numbered(name) if order.overwrite or not folder.exists())
    show_aside(f"No folder is given (--out): the result goes to {folder}\n")
    return folder


def _numbered(name: str) -> Iterator[Path]:
    """`name`, `name-2`, `name-3` and so on."""
    yield Path(name)
    yield from (Path(f"{name}-{number}") for number in count(2))


def _checked(order: Order, recipe: Recipe, sources: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """The evaluation and the models, once it is known that the result can be written; before any image is read."""
    from hf_zipit.assembly.kinds import kind_of
    from hf_zipit.merging.dry_run import check_result

    check_result(sources, recipe, order.library, order.license)
    if not order.eval_data:
        return None, sources
    if not kind_of(sources, recipe.backbone).joint:
        raise OptionError("--eval-data is only for classifiers: evaluate this merge with `hf-zipit eval`")
    return _evaluation(recipe, sources, order.eval_data), sources


def _evaluation(recipe: Recipe, sources: Sequence[Any], data: Sequence[str]) -> Any:
    """The labelled images that the result and its parents are measured on."""
    from hf_zipit.assembly.parents import heads_of
    from hf_zipit.evaluation.evaluate import open_classification
    from hf_zipit.merging.provenance import task_names

    heads = heads_of(sources, task_names(sources, recipe.tasks))
    transform = next((source.transform for source in sources if source.transform), None)
    chosen: dict[str, Any] = {"skip_bad_images": recipe.skip_bad_images, "label_column": recipe.label_column}
    return open_classification(heads, list(data), sources[0].input_size, transform, chosen, device=recipe.device)
