"""`hf-zipit merge`."""

from typing import Annotated, Any

import typer

from hf_zipit.commands.hub_flags import CreatePr, Message, Private, PushTo, Revision, takes_access
from hf_zipit.commands.making import Made, Order, make, plan, recipe_of
from hf_zipit.commands.options import DryRun, EvalData, Format, Json, License, Out, Overwrite, Require
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import painted, show_aside
from hf_zipit.sources.access import Access


@takes_access
@takes_recipe
def merge(
    models: Annotated[
        list[str],
        typer.Argument(help="Models: Hub ids (user/name or user/name@revision) or folders; or one recipe file, .yml."),
    ],
    access: Access,
    out: Out = None,
    overwrite: Overwrite = False,
    library: Format = "zipit",
    license: License = None,
    eval_data: EvalData = None,
    require: Require = None,
    dry_run: DryRun = False,
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
    upload = {"private": private, "revision": revision, "create_pr": create_pr, "commit_message": message}
    recipe = recipe_of(models, given)
    order = Order(recipe, access, out, overwrite, library, license, eval_data, require, push_to, upload, as_json)
    order.check()
    plan(order) if dry_run else make(order, say_made)


def say_made(made: Made) -> None:
    """Print what was chosen for the user, why, what the result costs, and how good it is."""
    from hf_zipit.evaluation.report import price
    from hf_zipit.merging.verdict import verdict_text

    about = made.about
    if about.choice is not None:
        chosen = f"method {about.recipe['method']}, calibrate {about.recipe['calibrate']}"
        show_aside("\n".join([f"Chosen: {chosen}", *(f"- {reason}" for reason in about.choice["reasons"])]) + "\n")
    if len(made.sources) > 1:
        show_aside(price(made.model, made.sources) + "\n")
    if about.verdict is not None:
        color = {True: "green", False: "yellow"}.get(about.verdict["worth_it"])
        table, *sentences = verdict_text(about.verdict).split("\n\n")
        show_aside("\n\n".join([table, *(painted(sentence, fg=color) for sentence in sentences)]) + "\n")
