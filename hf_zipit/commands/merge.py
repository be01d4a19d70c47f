"""`hf-zipit merge`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.commands.hub_flags import CreatePr, Message, Private, PushTo, Revision, takes_access
from hf_zipit.commands.options import Format, Json, License, Overwrite
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import show, show_aside, show_json
from hf_zipit.errors import OptionError
from hf_zipit.recipe import SUFFIXES, Recipe, read_recipe
from hf_zipit.sources.access import Access


@takes_access
@takes_recipe
def merge(
    models: Annotated[
        list[str],
        typer.Argument(help="Models: Hub ids (user/name or user/name@revision) or folders; or one recipe file, .yml."),
    ],
    access: Access,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the merged model. Default: the name in --push-to.")
    ] = None,
    overwrite: Overwrite = False,
    library: Format = "zipit",
    license: License = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(
            "--eval-data", help="Labelled images to evaluate the merge on, for its model card. Can be repeated."
        ),
    ] = None,
    require: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Share of held-out images on which every task must answer as its parent; if one does not, nothing "
            "is written, and the exit code is 1.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be merged and what it costs, and write nothing.")
    ] = False,
    push_to: PushTo = None,
    private: Private = None,
    revision: Revision = None,
    create_pr: CreatePr = False,
    message: Message = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Merge models of one architecture into one model with a head per task.

    Models and options can be read from a recipe file; models and flags on the command line override it.
    """
    recipe = _recipe(models, given)
    _check_flags(recipe, library, eval_data, require)
    if dry_run:
        return _plan(recipe, access, library, license, as_json)
    if out is None and push_to is None:
        raise OptionError("the result has no destination: pass a folder with --out, or a repository with --push-to")
    out = out or Path(str(push_to).rpartition("/")[2])
    from hf_zipit.assembly.kinds import kind_of
    from hf_zipit.data.batches import make_accelerator
    from hf_zipit.evaluation.card_results import add_results
    from hf_zipit.merging.dry_run import check_result
    from hf_zipit.merging.merge import check_recipe, merge_recipe
    from hf_zipit.saving import push as hub
    from hf_zipit.saving import save as saving
    from hf_zipit.saving.provenance import Provenance

    check_recipe(recipe, len(recipe.sources), recipe.data)
    saving.check_output(out, overwrite)
    if push_to is not None:
        hub.check_target(push_to, revision=revision, create_pr=create_pr)

    evaluation: list[Any] = []

    def check(found: Recipe, sources: Any) -> None:
        check_result(sources, found, library, license)
        if eval_data and not kind_of(sources, found.backbone).joint:
            raise OptionError("--eval-data is only for classifiers: evaluate this merge with `hf-zipit eval`")
        if eval_data:  # opened before the work, so that data that cannot be used do not cost a merge
            evaluation.extend((_evaluation(found, sources, eval_data), sources))

    merged = merge_recipe(recipe, access, check)
    main = make_accelerator().is_main_process
    _report(Provenance.of(merged.config), require, quiet=as_json or not main)
    if not main:
        return
    rows = evaluation[0].results(merged, evaluation[1]) if eval_data else []
    saving.save(merged, out, overwrite=overwrite, library=library, license=license)
    if eval_data:
        add_results(out, merged.config, rows, eval_data)
    address = None
    if push_to is not None:
        address = hub.push(
            out, push_to, private=private, revision=revision, create_pr=create_pr, commit_message=message
        )
    if as_json:
        about = {"folder": str(out), "address": address, "tasks": merged.config.tasks, "cut": merged.config.cut}
        show_json({**about, **Provenance.of(merged.config).to_dict()})
    else:
        show(address or out)


def _report(about: Any, require: float | None, quiet: bool) -> None:
    """Print what was chosen for the user, why, and how good the result is; refuse it if it is not as required."""
    from hf_zipit.merging.verdict import check_required, verdict_text

    if about.choice is not None and not quiet:
        chosen = f"method {about.recipe['method']}, calibrate {about.recipe['calibrate']}"
        show_aside("\n".join([f"Chosen: {chosen}", *(f"- {reason}" for reason in about.choice["reasons"])]) + "\n")
    if about.verdict is not None and not quiet:
        show_aside(verdict_text(about.verdict) + "\n")
    if require is not None:
        check_required(about.verdict, require)


def _check_flags(recipe: Recipe, library: str, eval_data: list[str] | None, require: float | None) -> None:
    if require is not None and not recipe.verdict:
        raise OptionError(f"--require is {require:g}, which takes a verdict: leave out --no-verdict")
    if library != "zipit" and (recipe.cut is not None or recipe.width != 1 or recipe.flops_budget is not None):
        raise OptionError(
            f"--format {library} is only for full merges at the parents' width: leave out --cut, --width and "
            "--flops-budget"
        )
    if eval_data and library != "zipit":
        raise OptionError("--eval-data needs --format zipit: merge in that format, then use `hf-zipit export`")


def _recipe(models: list[str], given: dict[str, Any]) -> Recipe:
    if not models[0].endswith(SUFFIXES):
        return Recipe(sources=models, **given)
    file, *others = models
    sources = {"sources": others} if others else {}
    return read_recipe(file, **sources, **given)


def _plan(recipe: Recipe, access: Access, library: str, license: str | None, as_json: bool) -> None:
    from hf_zipit.merging.dry_run import plan_merge, plan_text

    plan = plan_merge(recipe, access, library, license)
    show_json(plan.to_dict()) if as_json else show(plan_text(plan))


def _evaluation(recipe: Recipe, sources: Any, data: list[str]) -> Any:
    """The labelled images that the merge and its parents are measured on."""
    from hf_zipit.assembly.parents import heads_of
    from hf_zipit.evaluation.evaluate import open_classification
    from hf_zipit.merging.provenance import task_names

    heads = heads_of(sources, task_names(sources, recipe.tasks))
    transform = next((source.transform for source in sources if source.transform), None)
    chosen: dict[str, Any] = {"skip_bad_images": recipe.skip_bad_images, "label_column": recipe.label_column}
    return open_classification(heads, data, sources[0].input_size, transform, chosen, device=recipe.device)
