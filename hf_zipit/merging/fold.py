"""One model made smaller: a merge of its own units."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit.assembly.parents import Merged
from hf_zipit.errors import OptionError
from hf_zipit.merging.merge import merge
from hf_zipit.merging.signature import takes_options
from hf_zipit.recipe import OF_SEVERAL, Recipe
from hf_zipit.sources.source import Source


@partial(takes_options, without=OF_SEVERAL)
def fold(
    model: str | Path | nn.Module | Source,
    data: Any = None,
    *,
    token: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    **options: Any,
) -> Merged:
    """Make one model smaller, without training: similar units of the model are merged with each other.

    The result has the classes of the model, and `width` times its units in every feature space whose width can change.
    `config.zipit["kept"]` names the other spaces, and why they stay as wide as they are.

    Args:
        model: A Hub id, folder, module or opened source; it is not changed.
        data: Images for statistics and calibration, as for `hf_zipit.merge`; labels are not used. Without any, units
            are compared by their weights.
        {options}
        token: Hub access token for models and data sets. Default: `HF_TOKEN` or `hf auth login`.
        trust_remote_code: Run code files that come with a model.
        allow_pickle: Read `.bin` weights of models that have no others, with torch's restricted unpickler.

    Returns:
        The smaller model in eval mode, on the CPU; `save_pretrained` writes it.

    Raises:
        OptionError: Several models are given, the result would not be smaller, or an option is out of range.
        SourceError: The model cannot be loaded.
        SpecError: No spec describes the model.
        DataError: The data cannot be read, is too small, or yields activations that are not finite.

    >>> small = fold("user/pets", "user/pets-data", width=0.5)  # doctest: +SKIP
    """
    if isinstance(model, list | tuple):
        raise OptionError(f"{len(model)} models given: a fold takes one; hf_zipit.merge makes one model of several")
    check_smaller(Recipe(**options))
    options |= {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    return merge([model], data, token=token, **options)


def check_smaller(recipe: Recipe) -> None:
    """Check that the options make a model smaller.

    Raises:
        OptionError: they do not.
    """
    if recipe.flops_budget is None and recipe.width == 1:
        raise OptionError("a fold needs to know how small: give a width below 1, or a flops_budget below 1")
    if not recipe.shrinks:
        name = "width" if recipe.flops_budget is None else "flops_budget"
        raise OptionError(f"{name} is {getattr(recipe, name):g}: a fold makes a model smaller, so it must be below 1")
