"""The merge as one call; what it does step by step is in `Merger`."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from hf_zipit.data.images import NO_DATA
from hf_zipit.errors import OptionError
from hf_zipit.matching.methods import Options
from hf_zipit.merging.balance import AUTO, merge_balanced
from hf_zipit.merging.merger import Merged, Merger, check_calibration
from hf_zipit.sources.access import Access
from hf_zipit.sources.load import load
from hf_zipit.sources.source import Source

_log = logging.getLogger("hf_zipit")


def merge(
    sources: Sequence[str | Path | nn.Module | Source],
    data: Any = None,
    *,
    method: str = "zip",
    cut: str | None = None,
    alpha: float = 0.1,
    beta: float = 0.8,
    compat: bool = False,
    balance: float | Literal["auto"] = 0.5,
    balance_data: Any = None,
    sweeps: int = 100,
    width: float = 1.0,
    flops_budget: float | None = None,
    num_images: int | Sequence[int] | None = None,
    batch_size: int = 32,
    calibrate: str = "batchnorm",
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    spec: str | Path | None = None,
    backbone: str | None = None,
    cache: bool = True,
    token: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Merged:
    """Merge models of one architecture into one model with a head per task, without training.

    Models of different classes (a classifier and a segmentation model) are merged as far as they hold the same
    backbone; what surrounds it stays with its task.

    Args:
        sources: two or more Hub ids, folders or timm modules; none of them is changed.
        data: images for the statistics, no labels needed: one data set for all, or a list with one for each model.
            A Hub id, an image folder, parquet files, a `datasets.Dataset`, or batches of pixels (see `open_images`).
            Not read where neither the method nor the calibration needs images.
        method: `zip`, `select`, `permute`, `average`, `optimal`, `kmeans`, `git-rebasin`, `weight-zip`,
            `mudsc-align` or `mudsc-zip` (see `METHODS`).
        cut: merge up to this step or stage (`layer2`); each task keeps its own layers after it. `None` merges
            everything but the classifiers.
        alpha: penalty on merging many units into one, in [0, 1] (`zip`, `*-zip`).
        beta: share of the merges that may happen within a model, in [0, 1] (`zip`, `*-zip`).
        compat: follow the authors' code where it differs from the repaired method.
        balance: weight of the similarity of weights against that of activations, in [0, 1] (`mudsc-*`). `auto` tries
            0.1 to 0.9 and takes the merge whose outputs are nearest to the parents' on the images.
        balance_data: with `auto`, labelled images, as `data`: the most accurate merge on them is taken instead.
        sweeps: over all spaces, at most (methods that compare weights; they stop when no match changes).
        width: merged units for each unit of one model, in every space that can have another width.
        flops_budget: choose the cut (if none is given) and the widths for at most so many FLOPs, in forwards of one
            parent, all tasks together: where they save most error. 1 allows a full merge and its classifiers.
        num_images: images per data set, chosen by the seed: one number for all, or one each; `None` uses all.
        batch_size: images per forward pass.
        calibrate: `batchnorm` re-estimates the norms' statistics on the data, `repair` gives every unit the mean and
            deviation of its parents, `refit` fits layers and heads to the parents by least squares, `none` leaves
            the merge as it is (see `CALIBRATIONS`).
        tasks: a name for each task, in the models' order; by default a model's name is that of its task, and a merge's
            tasks keep theirs.
        seed: chooses the images.
        device: where to run; by default what accelerate finds. The result is on the CPU.
        spec: a spec file to use instead of the shipped one for the model's class.
        backbone: the path of the backbone in models that surround it with more, such as `encoder`; found by itself.
        cache: keep the statistics of every space on disk, for other merges of these models on these images.
        token: an access token of the Hub for models and data sets; by default that of `HF_TOKEN` or `hf auth login`.
        trust_remote_code: run code files that come with a model.
        allow_pickle: read `.bin` weights of models that have no others, with torch's restricted unpickler.

    Returns:
        The merged model in eval mode; `save_pretrained` writes it.

    Raises:
        OptionError: an option is unknown or out of range.
        SourceError: a model cannot be loaded, or they are not alike.
        SpecError: no spec describes the models.
        DataError: the data cannot be read, is too small, or yields activations that are not finite.

    >>> merged = merge(["user/pets", "user/birds"], ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
    """
    access = Access(token, trust_remote_code, allow_pickle)
    options = checked_options(locals())
    for name in options.ignored:
        _log.warning("%s is %s, which %s does not use", name, getattr(options, name), method)
    merger = Merger(
        [load(source, access=access) for source in sources],
        data if reads_images(options, calibrate) else None,
        num_images=num_images,
        batch_size=batch_size,
        tasks=tasks,
        seed=seed,
        device=device,
        spec=spec,
        backbone=backbone,
        cache=cache,
        token=token,
    )
    if balance == AUTO:
        return merge_balanced(merger, options, cut=cut, calibrate=calibrate, data=balance_data)[0]
    return merger.merge(options, cut=cut, calibrate=calibrate)


def checked_options(arguments: Mapping[str, Any]) -> Options:
    """How to match, from the keyword arguments of `merge`: what is wrong with them is told before models are read.

    Args:
        arguments: every keyword argument of `merge`, and `sources` as far as they are known.

    Raises:
        OptionError: an option is unknown or out of range, images are needed and none given, or there are fewer than
            two sources.
    """
    if arguments["balance"] != AUTO and arguments["balance_data"] is not None:
        given = arguments["balance"]
        raise OptionError(f"balance_data chooses a balance, but it is given: {given}; pass balance='{AUTO}'")
    options = Options.of(arguments)
    check_calibration(arguments["calibrate"])
    if len(arguments["sources"]) < 2:
        raise OptionError(f"{len(arguments['sources'])} model given: a merge needs two or more")
    if arguments["data"] is None and reads_images(options, arguments["calibrate"]):
        raise OptionError(NO_DATA)
    return options


def reads_images(options: Options, calibrate: str) -> bool:
    """Whether a merge looks at images."""
    return options.needs_statistics or calibrate != "none"
