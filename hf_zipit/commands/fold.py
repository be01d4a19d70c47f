"""`hf-zipit fold`."""

from functools import partial
from typing import Annotated, Any

import typer

from hf_zipit.commands.hub_flags import CreatePr, Message, Private, PushTo, Revision, takes_access
from hf_zipit.commands.making import Made, Order, make, plan, recipe_of
from hf_zipit.commands.merge import say_made
from hf_zipit.commands.options import DryRun, EvalData, Format, Json, License, Out, Overwrite, Require
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import show_aside
from hf_zipit.errors import OptionError
from hf_zipit.recipe import OF_SEVERAL
from hf_zipit.sources.access import Access


@takes_access
@partial(takes_recipe, without=OF_SEVERAL)
def fold(
    model: Annotated[
        str,
        typer.Argument(help="Model: a Hub id (user/name or user/name@revision) or a folder; or a recipe file, .yml."),
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
    """Make one model smaller, without training: its similar units are merged with each other.

    --width 0.5 halves every feature space whose width can change, and --flops-budget 0.5 chooses widths for half of the
    FLOPs. Without images, units are compared by their weights.
    """
    from hf_zipit.merging.fold import check_smaller

    upload = {"private": private, "revision": revision, "create_pr": create_pr, "commit_message": message}
    recipe = recipe_of([model], given)
    if len(recipe.sources) > 1:
        raise OptionError(f"{model} is a recipe of {len(recipe.sources)} models: run it with hf-zipit merge")
    check_smaller(recipe)
    order = Order(recipe, access, out, overwrite, library, license, eval_data, require, push_to, upload, as_json)
    order.check()
    plan(order) if dry_run else make(order, _say)


def _say(made: Made) -> None:
    """Print what a merge prints, what became of the spaces, and the costs before and after."""
    from hf_zipit.evaluation.report import before_and_after

    say_made(made)
    spaces, kept = made.about.spaces, made.about.kept or {}
    smaller = len(spaces) - sum(map(len, kept.values()))
    lines = [f"{smaller} of {len(spaces)} feature spaces are smaller"]
    lines += [f"- as wide as before: {len(names)}, {reason}" for reason, names in kept.items()]
    show_aside("\n".join(lines) + "\n")
    show_aside(before_and_after(made.model, made.sources[0], made.rows) + "\n")
