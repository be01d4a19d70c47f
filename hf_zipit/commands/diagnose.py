"""`hf-zipit diagnose`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_zipit.commands.compare import Models
from hf_zipit.commands.hub_flags import takes_access
from hf_zipit.commands.json_output import show_json
from hf_zipit.commands.options import Data, Json
from hf_zipit.commands.recipe_flags import takes_recipe
from hf_zipit.commands.terminal import show
from hf_zipit.errors import OptionError
from hf_zipit.sources.access import Access

VARIED = ("data", "cut", "width", "flops_budget", "balance_data", "verdict", "parent_accuracy")


@takes_access
@partial(takes_recipe, without=VARIED)
def diagnose(
    models: Models,
    data: Data,
    access: Access,
    plot: Annotated[Path | None, typer.Option("--plot", help="PNG file for a picture of the diagnosis.")] = None,
    as_json: Json = False,
    **given: Any,
) -> None:
    """Find out what a merge of some models can be worth, before making one.

    Trial merges at several cuts and widths are made on few images (300 of each data set, unless --num-images says
    another number), and judged on others without labels. Prints how the models are related, what survives of each
    stage, what to expect for which cost, and what to choose within 1, 1.25 and 1.5 times the FLOPs of one model.
    Nothing but the picture is written.
    """
    from hf_zipit.data.batches import make_accelerator
    from hf_zipit.diagnosis.diagnose import diagnose as find
    from hf_zipit.diagnosis.report import diagnosis_text, plot_diagnosis
    from hf_zipit.recipe import Recipe

    if plot is not None and not plot.absolute().parent.is_dir():
        raise OptionError(f"--plot {plot}: there is no folder {plot.parent}")
    found = find(models, data, Recipe(**given), access=access)
    if not make_accelerator().is_main_process:
        return
    if plot is not None:
        plot_diagnosis(found, plot)
    show_json("diagnose", found.to_dict()) if as_json else show(diagnosis_text(found))
