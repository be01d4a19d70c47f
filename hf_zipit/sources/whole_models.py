"""Whole models that hold a backbone, as `Source`: segmentation, depth and others of transformers and smp, any module.

smp is segmentation-models-pytorch, an optional extra.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hf_zipit.errors import SourceError
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import digest, no_larger_than, read_weights, weight_files
from hf_zipit.sources.libraries import NOWHERE, processor_in, processor_transform, timm_transform
from hf_zipit.sources.source import Source

SMP = "segmentation-models-pytorch"


KINDS = {
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "image-segmentation",
    "ForDepthEstimation": "depth-estimation",
    "ForMaskedImageModeling": "image-to-image",
    "ForImageSuperResolution": "image-to-image",
}


FEATURES = "image-feature-extraction"


_NOT_KEPT = {"id2label", "label2id", "_name_or_path", "architectures", "transformers_version", "dtype"}


def module_source(
    model: nn.Module,
    kind: str,
    *,
    name: str | None = None,
    labels: Sequence[str] = (),
    input_size: tuple[int, int, int] | None = None,
    transform: Callable[[Any], Tensor] | None = None,
) -> Source:
    """Any module that takes a batch of images, as a model to merge. Its merges run, but cannot be saved.

    Args:
        model: called with pixels `(B, 3, H, W)`; it is never changed.
        kind: what it does: `image-classification`, `image-segmentation`, `depth-estimation`, `image-to-image` or
            `image-feature-extraction`.
        name: the name of its task.
        labels: its classes, in id order.
        input_size: (channels, height, width); not needed where another of the models says it.
        transform: PIL image -> pixels.

    >>> source = module_source(EncoderDecoder(), "image-to-image", name="edges")  # doctest: +SKIP
    """
    kinds = {*KINDS.values(), FEATURES}
    if kind not in kinds:
        raise SourceError(f"unknown kind of task '{kind}'; kinds: {', '.join(sorted(kinds))}")
    backbone = {"library": "memory", "architecture": type(model).__name__}
    preprocessing = {} if input_size is None else {"input_size": input_size}
    name = name or type(model).__name__.lower()
    return Source(name, model, backbone, list(labels), preprocessing, transform, dict(NOWHERE), {}, kind=kind)


def is_whole(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` describes a model that is no plain classifier of timm or transformers."""
    classes = config.get("architectures") or [""]
    return "_model_class" in config or ("model_type" in config and not _classifies(classes[0]))


def _classifies(name: str) -> bool:
    """Whether a class of transformers is an image classifier, distilled ones (`...WithTeacher`) included."""
    return "ForImageClassification" in name


def from_whole_module(model: nn.Module) -> Source | None:
    """A model in memory of a library that can rebuild it; `None` for those of no such library."""
    known: Any = model
    if type(model).__module__.startswith("segmentation_models_pytorch"):
        return _smp(known, {**known.config, "_model_class": type(model).__name__}, None, dict(NOWHERE))
    if hasattr(getattr(model, "config", None), "model_type") and not _classifies(type(model).__name__):
        return _transformers(known, None, None, dict(NOWHERE))
    return None


def whole_folder(folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access) -> Source:
    """A folder written by transformers or smp.

    Raises:
        SourceError: the weights are missing, damaged or do not fit, or the library is not installed.
    """
    files = weight_files(folder, access.allow_pickle)
    origin = {**origin, "sha256": digest(files)}
    with no_larger_than(files, folder / "config.json"):
        if "_model_class" in config:
            model: Any = _smp_model(config)
        else:
            model = _transformers_model(folder, config, safe=files[0].suffix == ".safetensors")
    if "_model_class" not in config:
        return _transformers(model.eval(), name, processor_in(folder), origin, folder)
    state = read_weights(files)
    wrong = sorted(set(state) ^ set(model.state_dict()))
    if wrong:
        raise SourceError(f"{files[0]} does not fit its config.json: {', '.join(wrong[:3])}")
    model.load_state_dict(state)
    return _smp(model, config, name, origin, folder)


def outline(folder: Path, config: dict[str, Any], name: str) -> Source:
    """A model of such a folder with random weights: what its configuration says, whether its weights are there or not.

    Raises:
        SourceError: its class is not known, or its library not installed.
    """
    if "_model_class" in config:
        return _smp(_smp_model(config), config, name, dict(NOWHERE), folder)
    import transformers

    cls = _class(folder, config)
    model = cls(transformers.AutoConfig.for_model(**{k: v for k, v in config.items() if k not in ("architectures",)}))
    return _transformers(model.eval(), name, processor_in(folder), dict(NOWHERE), folder)


def _class(folder: Path, config: Mapping[str, Any]) -> Any:
    import transformers

    known = (config.get("architectures") or [""])[0]
    cls: Any = getattr(transformers, known, None)
    if not hasattr(cls, "from_pretrained") or not known:
        what = f"transformers has no class {known}" if known else "it does not name its class under architectures"
        raise SourceError(f"{folder}/config.json: transformers cannot load it: {what}")
    return cls


def _transformers_model(folder: Path, config: Mapping[str, Any], safe: bool) -> nn.Module:
    cls = _class(folder, config)
    try:
        model, info = cls.from_pretrained(folder, output_loading_info=True, use_safetensors=safe)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{folder}: transformers cannot load it: {str(error).strip().splitlines()[0]}") from error
    wrong = sorted(str(key) for keys in info.values() for key in keys)
    if wrong:
        raise SourceError(f"the weights in {folder} do not fit its config.json: {', '.join(wrong[:3])}")
    out: nn.Module = model
    return out


def _transformers(
    model: Any, name: str | None, processor: Any, origin: dict[str, Any], folder: Path | None = None
) -> Source:
    kind = next((kind for ending, kind in KINDS.items() if type(model).__name__.endswith(ending)), FEATURES)
    config = {k: v for k, v in model.config.to_dict().items() if k not in _NOT_KEPT}
    labels: list[str] = []
    if kind in ("image-classification", "image-segmentation"):
        labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
        config["num_labels"] = len(labels)
    backbone = {"library": "transformers", "architecture": type(model).__name__, "config": config}
    preprocessing: dict[str, Any] = {} if processor is None else dict(processor.to_dict())
    size = _size(config, preprocessing)
    preprocessing |= {"input_size": (int(config.get("num_channels") or 3), *size)} if size else {}
    transform = processor_transform(processor)
    name = name or model.config.model_type
    return Source(*(name, model, backbone, labels, preprocessing, transform, origin, {}, folder, processor), kind=kind)


def preprocessing_of_tasks(merged: Any) -> tuple[tuple[int, int, int], Callable[[Any], Tensor] | None]:
    """The input size and the transform (PIL image -> pixels) of a merge of models of several classes."""
    config = merged.config
    channels, height, width = config.input_size
    settings = config.preprocessing or getattr(config, "pretrained_cfg", None)
    transform = timm_transform(settings) if settings else processor_transform(merged.image_processor)
    return (channels, height, width), transform


def dense_processor(size: Sequence[int], settings: Mapping[str, Any]) -> Any:
    """An image processor that pipelines for masks and depth can use, with the settings of a timm model."""
    from transformers import DPTImageProcessor

    return DPTImageProcessor(
        size={"height": size[1], "width": size[2]},
        do_pad=False,
        keep_aspect_ratio=False,
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )


def _size(config: Mapping[str, Any], preprocessing: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of the images: what the processor makes, else what the model was built for."""
    stated = preprocessing.get("size") or {}
    if "height" in stated:
        return int(stated["height"]), int(stated["width"])
    size = config.get("image_size") or (config.get("backbone_config") or {}).get("image_size")
    if not size:
        return None
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return int(height), int(width)


def _smp_model(config: Mapping[str, Any]) -> nn.Module:
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise SourceError(f"this model needs {SMP}: pip install 'hf-zipit[segmentation]'") from None
    args = {k: v for k, v in config.items() if not k.startswith("_")}
    known = str(config["_model_class"])
    cls = getattr(smp, known, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise SourceError(f"{SMP} has no model class {known!r}")
    model: nn.Module = cls(**{**args, "encoder_weights": None})
    return model.eval()


def _smp(
    model: Any, config: Mapping[str, Any], name: str | None, origin: dict[str, Any], folder: Path | None = None
) -> Source:
    args = {k: v for k, v in config.items() if not k.startswith("_")} | {"encoder_weights": None}
    backbone = {"library": SMP, "architecture": config["_model_class"], "model_args": args}
    labels = [f"LABEL_{i}" for i in range(int(args.get("classes", 1)))]
    name = name or str(config["_model_class"]).lower()
    return Source(name, model, backbone, labels, {}, None, origin, {}, folder, kind="image-segmentation")
