"""The merge as a straight line: load, bind, observe, match, transform, build, calibrate."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_zipit import __version__
from hf_zipit import sources as source_models
from hf_zipit.assembly import Plan, build, config_of, merged_state
from hf_zipit.batching import batches, make_accelerator
from hf_zipit.calibrate import CALIBRATIONS
from hf_zipit.chain import device_of, resolve_cut, working_copy
from hf_zipit.data import Images, open_all
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.libraries import Source
from hf_zipit.matching.match import Match
from hf_zipit.matching.methods import Options, match_spaces
from hf_zipit.modeling_zipit import ZipItForImageClassification
from hf_zipit.progress import progress
from hf_zipit.spaces import FeatureSpace
from hf_zipit.statistics import collect


def merge(
    sources: Sequence[str | Path | nn.Module | Source],
    data: Any = None,
    *,
    method: str = "zip",
    cut: str | None = None,
    alpha: float = 0.1,
    beta: float = 0.8,
    compat: bool = False,
    num_images: int | None = None,
    batch_size: int = 32,
    calibrate: str = "batchnorm",
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    spec: str | Path | None = None,
) -> ZipItForImageClassification:
    """Merge models of one architecture into one model with a head per task, without training.

    Args:
        sources: two or more Hub ids, folders or timm modules; none of them is changed.
        data: images for the statistics, no labels needed: one data set for all, or a list with one for each model.
            A Hub id, an image folder, parquet files, a `datasets.Dataset`, or batches of pixels (see `open_images`).
            Not read where neither the method nor the calibration needs images.
        method: `zip`, `permute` or `average`.
        cut: merge up to this step or stage (`layer2`); each task keeps its own layers after it. `None` merges
            everything but the classifiers.
        alpha: penalty on merging many units into one, in [0, 1] (`zip`).
        beta: share of the merges that may happen within a model, in [0, 1] (`zip`).
        compat: follow the authors' code where it differs from the repaired method.
        num_images: images per data set, chosen by the seed; `None` uses all.
        batch_size: images per forward pass.
        calibrate: `batchnorm` re-estimates the norms' statistics on the data, `none` leaves them.
        tasks: a name for each model's task; by default the models' names.
        seed: chooses the images.
        device: where to run; by default what accelerate finds. The result is on the CPU.
        spec: a spec file to use instead of the shipped one for the model's class.

    Returns:
        The merged model in eval mode; `save_pretrained` writes it.

    Raises:
        OptionError: an option is unknown or out of range.
        SourceError: a model cannot be loaded, or they are not alike.
        SpecError: no spec describes the models.
        DataError: the data cannot be read, is too small, or yields activations that are not finite.

    >>> merged = merge(["user/pets", "user/birds"], ["user/pets-data", "user/birds-data"])  # doctest: +SKIP
    """
    options = Options(method, alpha, beta, compat)
    if calibrate not in CALIBRATIONS:
        raise OptionError(f"unknown calibration '{calibrate}'; calibrations: {', '.join(CALIBRATIONS)}")
    loaded = [source_models.load(source) for source in sources]
    names = _task_names(loaded, tasks)
    binding = source_models.find_spec(loaded[0], spec)
    source_models.check_alike(loaded, binding)
    plan = Plan(binding, resolve_cut(binding, cut), cut)
    needed = options.needs_statistics or calibrate != "none"
    images = open_all(data, len(loaded), loaded[0].transform, num_images=num_images, seed=seed) if needed else []

    pipeline = _Pass(images, batch_size, device)
    matches = _match(loaded, plan, options, pipeline)
    config = config_of(loaded, names, plan)
    config.zipit = _provenance(loaded, images, options, calibrate, seed, matches)
    merged = build(config, loaded, merged_state(loaded, plan, matches))
    merged.spec_text, merged.image_processor = binding.spec.text, loaded[0].processor
    merged.to(pipeline.device)
    CALIBRATIONS[calibrate](merged, pipeline.batches("Calibrating"), pipeline.accelerator, pipeline.device)
    merged.to("cpu").eval()
    return merged


class _Pass:
    """One more pass over the images, on this process's device and share of the batches."""

    def __init__(self, images: Sequence[Images], batch_size: int, device: str | None) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size is {batch_size}: it must be at least 1")
        self.images, self.batch_size = images, batch_size
        self.accelerator = make_accelerator()
        self.device = device_of(device, self.accelerator.device)

    def batches(self, label: str) -> Any:
        return progress(batches(self.images, self.batch_size, self.accelerator), label, self.accelerator)


def _task_names(sources: Sequence[Source], tasks: Sequence[str] | None) -> list[str]:
    if len(sources) < 2:
        raise SourceError(f"{len(sources)} model given: a merge needs two or more")
    if tasks is None:
        names = [source.name for source in sources]
        return [n if names.count(n) == 1 else f"{n}-{names[: i + 1].count(n)}" for i, n in enumerate(names)]
    if len(tasks) != len(sources) or len(set(tasks)) != len(tasks):
        raise OptionError(f"tasks {list(tasks)}: {len(sources)} different names are needed, one for each model")
    return list(tasks)


def _match(sources: Sequence[Source], plan: Plan, options: Options, pipeline: _Pass) -> dict[str, Match]:
    """Match the spaces that the trunk touches."""
    states = [source.model.state_dict() for source in sources]
    binding = plan.binding
    rows = binding.rows(plan.touched(states[0])).values()
    touched = {row.space for mine in rows for row in mine}
    spaces: Iterable[FeatureSpace] = [space for name, space in binding.spaces.items() if name in touched]
    if not options.needs_statistics:
        return match_spaces(spaces, {}, states, binding, options)
    models = [working_copy(source.model, pipeline.device, channels_last=not options.compat) for source in sources]
    statistics = collect(
        models,
        binding,
        pipeline.batches("Reading activations"),
        spaces=touched,
        tasks=len(pipeline.images),
        names=[source.name for source in sources],
        accelerator=pipeline.accelerator,
        device=pipeline.device,
        compat=options.compat,
    )
    spaces = progress(spaces, "Matching", pipeline.accelerator)
    return match_spaces(spaces, statistics, states, binding, options)


def _provenance(
    sources: Sequence[Source],
    images: Sequence[Images],
    options: Options,
    calibrate: str,
    seed: int,
    matches: Mapping[str, Match],
) -> dict[str, Any]:
    return {
        "generator": f"hf-zipit {__version__}",
        "sources": [source.origin for source in sources],
        "recipe": {
            "method": options.method,
            "alpha": options.alpha,
            "beta": options.beta,
            "compat": options.compat,
            "calibrate": calibrate,
            "seed": seed,
        },
        "data": [{"name": part.name, "num_images": len(part)} for part in images],
        "spaces": [{"name": name, "width": match.width, **match.composition()} for name, match in matches.items()],
    }
