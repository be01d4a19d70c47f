"""A merge as one function call, from keywords or from a recipe; `Merger` implements the steps."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit.assembly.parents import Merged
from hf_zipit.calibration.methods import CALIBRATIONS
from hf_zipit.data.draw import FEWEST
from hf_zipit.data.images import NO_DATA
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.matching.registry import AUTO
from hf_zipit.merging.automatic import FEW
from hf_zipit.merging.balance import merge_settled
from hf_zipit.merging.base import Base
from hf_zipit.merging.judge import accuracies_of, judge
from hf_zipit.merging.kept import kept_spaces
from hf_zipit.merging.merger import Merger
from hf_zipit.merging.provenance import check_count
from hf_zipit.merging.signature import takes_options
from hf_zipit.recipe import PinnedSource, Recipe, read_recipe
from hf_zipit.running import device_of
from hf_zipit.saving.provenance import Provenance
from hf_zipit.sources.access import NOTHING, Access
from hf_zipit.sources.load import load_source
from hf_zipit.sources.source import Source

_log = logging.getLogger("hf_zipit")
Check = Callable[[Recipe, Sequence[Source]], None]


@takes_options
def merge(
    sources: Sequence[str | Path | nn.Module | Source],
    data: Any = None,
    *,
    balance_data: Any = None,
    base: str | Path | nn.Module | Source | None = None,
    token: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    **options: Any,
) -> Merged:
    """Merge models of one architecture into one model with a head per task, without training.

    For models of different classes, such as a classifier and a segmentation model, only the backbone that they share is
    merged. The layers around it stay with their task.

    Args:
        sources: Two or more Hub ids, folders, modules or opened sources; none of them is changed.
        data: Images for the statistics; labels are not used. One data set for all models, or a list with one per model:
            a Hub id, an image folder, parquet files, a `datasets.Dataset`, or batches of pixels (see `open_images`).
            Not read if neither the method nor the calibration needs images, and there is to be no verdict.
        {options}
        balance_data: Labelled images, as for `data`. With balance auto, the most accurate merge on them is kept.
        base: The model that the others were fine-tuned from, for methods that add differences to it. Its classifier is
            not used. Default: the one that all model cards name.
        token: Hub access token for models and data sets. Default: `HF_TOKEN` or `hf auth login`.
        trust_remote_code: Run code files that come with a model.
        allow_pickle: Read `.bin` weights of models that have no others, with torch's restricted unpickler.

    Returns:
        The merged model in eval mode, on the CPU; `save_pretrained` writes it.

    Raises:
        OptionError: An option is out of range, or needs others that are not given.
        SourceError: A model cannot be loaded, or the models have nothing in common.
        SpecError: No spec describes the models.
        DataError: The data cannot be read, is too small, or yields activations that are not finite.

    >>> merged = merge(["user/pets", "user/birds"], ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
    """
    recipe = Recipe(**options)
    recipe.check_balance_data(balance_data)
    check_recipe(recipe, len(sources), data)
    access = Access(token, trust_remote_code, allow_pickle)
    opened = [load_source(source, access=access) for source in sources]
    return _run(recipe, opened, data, balance_data, access, base)


def merge_recipe(
    recipe: str | Path | Recipe, access: Access = NOTHING, check: Check | None = None, **changes: Any
) -> Merged:
    """Merge as a recipe specifies; the `zipit_config.yml` of a merged repository makes the same weights again.

    Args:
        recipe: A YAML file, or what `read_recipe` returns.
        access: Token and permissions for reading the models; a recipe cannot grant them.
        check: Called with the recipe and the opened models before any image is read; an exception stops the merge.
        changes: Values that override those of the recipe.

    Raises:
        OptionError: The recipe cannot be read, has an unknown key, or does not record where a model is.
        SourceError: A model is not the one that the recipe was written for.
        ZipItError: As for `hf_zipit.merge`.

    >>> merged = merge_recipe("recipe.yml", cut="layer3")  # doctest: +SKIP
    """
    recipe = recipe.changed(**changes) if isinstance(recipe, Recipe) else read_recipe(recipe, **changes)
    check_recipe(recipe, len(recipe.sources), recipe.data)
    sources = [_opened(entry, f"model {number}", access) for number, entry in enumerate(recipe.sources, 1)]
    if check is not None:
        check(recipe, sources)
    base = None
    if isinstance(recipe.base, PinnedSource) and (recipe.how.based or recipe.method == AUTO):
        base = _opened(recipe.base, "the base", access, "give --base (base) along with the recipe")
    return _run(recipe, sources, recipe.data, recipe.balance_data, access, base)


def check_recipe(recipe: Recipe, models: int, data: Any) -> None:
    """Check the inputs of a merge before any model is read.

    Args:
        recipe: The options.
        models: Number of models.
        data: The images, or `None`.

    Raises:
        OptionError: Fewer than two models are given, unless the result is to be smaller than one; images are needed and
            none are given; or there is no such device.
    """
    check_count(models, recipe.shrinks)
    if models == 1 and recipe.calibrate != AUTO and CALIBRATIONS[recipe.calibrate].joint:
        raise OptionError(f"calibrate is '{recipe.calibrate}', which is for the tasks of several models: use refit")
    if recipe.device is not None:
        device_of(recipe.device, recipe.device)
    if data is None and recipe.needs_images:
        raise OptionError(NO_DATA)


def _run(
    recipe: Recipe, sources: Sequence[Source], data: Any, balance_data: Any, access: Access, base: Base | None
) -> Merged:
    """Merge opened models."""
    for name in recipe.ignored:
        _log.warning("%s is %s, which %s does not use: leave it out", name, getattr(recipe, name), recipe.method)
    if (base or recipe.base) and not recipe.how.based and recipe.method != AUTO:
        _log.warning("base is not used, as %s adds no differences to it: leave it out", recipe.method)
    chosen = recipe.changed(sources=[], data=None)
    images = data if recipe.reads_images else None
    merger = Merger(sources, images, chosen, base=base, token=access.token, access=access)
    read = sum(map(len, merger.passes.images))
    if 0 < read < FEW and len(sources) > 1 and merger.passes.accelerator.is_main_process:
        said = "%d images say little about the models, so the merge is likely to be bad: give a few hundred (--data)"
        _log.warning(said, read)
    accuracies_of(merger, recipe)  # refused before the work, if there are too many or too few
    merged, settled = merge_settled(merger, recipe, balance_data)
    verdict = judge(merger, merged, settled) if recipe.verdict else None
    main = merger.passes.accelerator.is_main_process
    if len(sources) == 1:
        about = Provenance.of(merged.config)
        merged.config.zipit = replace(about, kept=kept_spaces(merger.parents, about.spaces)).to_dict()
    if verdict is not None:
        merged.config.zipit = replace(Provenance.of(merged.config), verdict=verdict.to_dict()).to_dict()
        for sentence in verdict.advice if main else ():
            _log.warning("%s", sentence)
    elif recipe.verdict and merger.passes.images and main:
        _log.warning(
            "there is no verdict: it takes %d images of each data set or more (--num-images; --no-verdict is silent)",
            FEWEST,
        )
    return merged


def _opened(
    entry: str | PinnedSource, what: str, access: Access, way_out: str = "pass the models along with the recipe"
) -> Source:
    """Load one model of a recipe, and check its weights against the recorded hash."""
    if isinstance(entry, str):
        return load_source(entry, access=access)
    if entry.ref is None:
        known = f"the folder '{entry.folder}', whose location is unknown" if entry.folder else "a model in memory"
        raise OptionError(f"{what} of the recipe was {known}; {way_out}")
    source = load_source(entry.ref, access=access)
    found = source.origin.get("sha256")
    if entry.sha256 and found != entry.sha256:
        raise SourceError(
            f"{entry.ref} is not the model that the recipe was written for: its weights have the sha256 "
            f"{str(found)[:12]}..., not {entry.sha256[:12]}.... To merge other models, pass them along with the recipe"
        )
    return source
