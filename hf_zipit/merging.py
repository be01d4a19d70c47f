"""The merge as a straight line: load, bind, observe, match, transform, build, calibrate."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hf_zipit import __version__
from hf_zipit import sources as source_models
from hf_zipit.calibrate import CALIBRATIONS
from hf_zipit.chain import channel_axis, resolve_cut, working_copy
from hf_zipit.configuration_zipit import ZipItConfig
from hf_zipit.data import Images, batches, make_accelerator, open_all
from hf_zipit.errors import OptionError, SourceError
from hf_zipit.libraries import Source
from hf_zipit.matching import Match
from hf_zipit.methods import Options, match_spaces
from hf_zipit.modeling_zipit import ZipItForImageClassification
from hf_zipit.progress import progress
from hf_zipit.spaces import Binding, FeatureSpace
from hf_zipit.statistics import collect
from hf_zipit.transform import merge_states, unmerge_reads


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
    plan = _Plan(binding, resolve_cut(binding, cut), cut)
    needed = options.needs_statistics or calibrate != "none"
    images = open_all(data, len(loaded), loaded[0].transform, num_images=num_images, seed=seed) if needed else []

    pipeline = _Pass(images, batch_size, device)
    matches = _match(loaded, plan, options, pipeline)
    config = _config(loaded, names, plan)
    config.zipit = _provenance(loaded, images, options, calibrate, seed, matches)
    merged = _build(config, loaded, _merged_state(loaded, plan, matches))
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
        self.device = torch.device(device) if device else self.accelerator.device

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


def _match(sources: Sequence[Source], plan: "_Plan", options: Options, pipeline: _Pass) -> dict[str, Match]:
    """Match the spaces that the trunk touches."""
    states = [source.model.state_dict() for source in sources]
    binding = plan.binding
    rows = binding.rows(binding.under(plan.trunk, states[0])).values()
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


def _config(sources: Sequence[Source], names: Sequence[str], plan: "_Plan") -> ZipItConfig:
    heads = [
        {"task": name, "id2label": dict(enumerate(source.labels)), "source": i}
        for i, (name, source) in enumerate(zip(names, sources, strict=True))
    ]
    first, binding = sources[0], plan.binding
    unmerge = None
    if plan.gathers:
        axis = channel_axis(first.model, binding, plan.depth, first.input_size)
        unmerge = {"axis": axis, "size": binding.spaces[plan.crossing].size}
    config = ZipItConfig(
        backbone=first.backbone,
        owns={step: list(mine) for step, mine in binding.owns.items() if mine != (step,)},
        trunk=list(plan.trunk),
        head=list(plan.head),
        cut=plan.cut,
        unmerge=unmerge,
        heads=heads,
    )
    if first.settings:
        config.pretrained_cfg = {**first.settings, "num_classes": sum(len(s.labels) for s in sources)}
        config.image_processor_type = "TimmWrapperImageProcessor"
    return config


@dataclass(frozen=True)
class _Plan:
    """Where the trunk ends, and how the heads read it."""

    binding: Binding
    depth: int
    cut: str | None

    @property
    def trunk(self) -> tuple[str, ...]:
        return self.binding.steps[: self.depth]

    @property
    def head(self) -> tuple[str, ...]:
        return self.binding.steps[self.depth :]

    @property
    def crossing(self) -> str:
        """The space of the one tensor that is alive between trunk and heads."""
        space = self.binding.after[self.binding.steps[self.depth - 1]]
        assert space is not None  # resolve_cut only gives legal cuts
        return space

    @property
    def gathers(self) -> bool:
        """Whether each head gathers its own units, instead of reading merged ones with folded weights.

        Folding is only for full merges, and only right where the head does nothing with the space but read it.
        """
        mine = [row for row in self.binding.table if row.space == self.crossing]
        inside = set(self.binding.under(self.head, [row.parameter for row in mine]))
        return self.cut is not None or any(row.role != "read" for row in mine if row.parameter in inside)


def _merged_state(sources: Sequence[Source], plan: _Plan, matches: Mapping[str, Match]) -> dict[str, Tensor]:
    """The merged model's state dict: merged trunk, each task's own head, and how it reads the trunk."""
    states = [source.model.state_dict() for source in sources]
    binding = plan.binding
    trunk = merge_states(states, binding, matches, binding.under(plan.trunk, states[0]))
    out = {f"trunk.{name}": value for name, value in trunk.items()}
    for model, state in enumerate(states):
        names = binding.under(plan.head, state)
        if plan.gathers:
            head = {name: state[name].clone() for name in names}
            out[f"unmerge.{model}.index"] = matches[plan.crossing].of(model).clone()
        else:
            head = unmerge_reads(state, binding, {plan.crossing: matches[plan.crossing]}, names, model)
        out.update({f"heads.{model}.{name}": value for name, value in head.items()})
    return out


def _build(config: ZipItConfig, sources: Sequence[Source], state: Mapping[str, Tensor]) -> ZipItForImageClassification:
    """The merged model on the sources' own architecture, with the config that builds it again."""
    with torch.device("meta"):
        planned = ZipItForImageClassification(config).state_dict()
    config.shapes = {k: list(v.shape) for k, v in state.items() if k in planned and v.shape != planned[k].shape}
    model = ZipItForImageClassification(config, [copy.deepcopy(source.model).eval() for source in sources])
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True)
    model.eval()
    return model


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
