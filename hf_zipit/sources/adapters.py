"""Adapters of PEFT, such as LoRA, on image classifiers of transformers: merged into their base when they are loaded."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_zipit.errors import SourceError
from hf_zipit.sources import from_transformers
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import (
    file_digest,
    no_larger_than,
    read_json,
    read_weights,
    weight_files,
)
from hf_zipit.sources.download import ADAPTER, ADAPTER_WEIGHTS, HUB_ID, fetch, is_adapter
from hf_zipit.sources.names import class_names
from hf_zipit.sources.processors import processor_in
from hf_zipit.sources.source import Source
from hf_zipit.text import load_errors, some

OTHER_NAMES = "its layers may have other names, as those of transformers 4: load it there, merge it and save the model"
_log = logging.getLogger("hf_zipit")


def adapted_from(folder: Path | None) -> str | None:
    """The model that the adapter in a folder is for; `None` if there is no adapter or it names none."""
    if folder is None or not is_adapter(folder):
        return None
    named = read_json(folder / ADAPTER).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def read_adapter(folder: Path, name: str, origin: dict[str, Any], access: Access) -> Source:
    """Load an adapter and its base, and merge the one into the other.

    The classifier is the one that the adapter keeps (`modules_to_save`), or else that of the base.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        name: the name of the source.
        origin: where the folder came from; the hash of all weights is added.
        access: what the user allows.

    Raises:
        SourceError: PEFT is not installed, the base is not an image classifier of transformers or cannot be loaded, or
            the adapter does not fit it.
    """
    if find_spec("peft") is None:
        raise SourceError(f"{folder} is an adapter, which takes PEFT: pip install 'hf-zipit[peft]'")
    config = read_json(folder / ADAPTER)
    base = _base_folder(config, folder, on_hub=origin["id"] is not None, access=access)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise SourceError(f"{folder} has no {ADAPTER_WEIGHTS}; save the adapter again with save_pretrained")
    settings = read_json(base / "config.json")
    if not from_transformers.owns(settings):
        raise SourceError(
            f"{folder} is an adapter of {base}, which transformers did not write: merge it and save the model"
        )
    files = weight_files(base, access.allow_pickle)
    with load_errors(f"{folder}: the adapter cannot be merged into {base}", Exception):  # libraries raise anything
        model = _merged(folder, base, config, files, access)
        processor = processor_in(folder) or processor_in(base)
    if processor is None:
        raise SourceError(f"neither {folder} nor {base} has a preprocessor_config.json: save the image processor there")
    origin = {**origin, "sha256": file_digest([folder / ADAPTER_WEIGHTS, *files])}
    if str(model.config.id2label.get(0)) == "LABEL_0":
        _log.warning(
            "%s does not name its classes; they are called LABEL_0, LABEL_1, ... (id2label in config.json names them)",
            name,
        )
    return replace(from_transformers.as_source(model, name, processor, origin), folder=folder)


def _base_folder(config: Mapping[str, Any], folder: Path, on_hub: bool, access: Access) -> Path:
    """The folder of the model that an adapter is for; an adapter of the Hub cannot name one of this machine."""
    named, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(named, str) or not named:
        raise SourceError(f"{folder}/{ADAPTER} names no base_model_name_or_path: merge the adapter and save the model")
    for place in () if on_hub else (Path(named), folder / named):
        if place.is_dir():
            return place
    if not HUB_ID.fullmatch(named):
        raise SourceError(f"{folder}/{ADAPTER}: there is no model at '{named}', its base_model_name_or_path")
    return fetch(f"{named}@{revision}" if isinstance(revision, str) and revision else named, access).folder


def _merged(folder: Path, base: Path, config: Mapping[str, Any], files: list[Path], access: Access) -> Any:
    """The base with the adapter merged into it."""
    import peft

    saved = set(config.get("modules_to_save") or [])
    given = read_weights([folder / ADAPTER_WEIGHTS])
    heads = [len(v) for n, v in given.items() if v.ndim == 2 and "lora" not in n and saved.intersection(n.split("."))]
    with _quietly(), no_larger_than(files, base / "config.json"):
        beside = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        model, info = _base(base, heads[0] if heads else None, beside.get("id2label"), files, access)
        absent = [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])]
        lacking = sorted(name for name in absent if not saved.intersection(name.split(".")))
        if lacking:
            raise SourceError(f"{base} lacks {some(lacking)}, which the adapter does not hold either")
        with load_errors(OTHER_NAMES, ValueError):
            adapted = peft.PeftModel.from_pretrained(model, str(folder))
        differing = sorted(set(peft.get_peft_model_state_dict(adapted)) ^ set(given))
        if differing:
            raise SourceError(f"{folder} does not fit {base}: {some(differing)} is only in one of them")
        return adapted.merge_and_unload(safe_merge=True).eval()


def _base(
    folder: Path, classes: int | None, names: Any, files: list[Path], access: Access
) -> tuple[Any, dict[str, Any]]:
    """The base with a classifier for some number of classes, and what transformers says of its weights."""
    from transformers import AutoConfig, AutoModelForImageClassification

    config = AutoConfig.from_pretrained(folder, trust_remote_code=access.trust_remote_code)
    if classes is not None:
        named = class_names(names, classes, "config.json of the adapter: id2label") if names else None
        config.id2label = dict(enumerate(named or (f"LABEL_{number}" for number in range(classes))))
        config.label2id = {name: number for number, name in config.id2label.items()}
    found: tuple[Any, dict[str, Any]] = AutoModelForImageClassification.from_pretrained(
        folder,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=access.trust_remote_code,
        use_safetensors=files[0].suffix == ".safetensors",
    )
    return found


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' warnings about what is checked here."""
    from transformers.utils import logging as log

    before = log.get_verbosity()
    log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(before)
