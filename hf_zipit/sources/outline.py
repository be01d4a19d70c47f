"""Models from their configurations alone, before any weights are downloaded."""

from dataclasses import replace
from pathlib import Path

from hf_zipit.errors import SourceError
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import read_json, weight_files
from hf_zipit.sources.download import HUB_ID, is_adapter, look, no_model
from hf_zipit.sources.library import known_library
from hf_zipit.sources.load import load_source
from hf_zipit.sources.source import Source
from hf_zipit.text import load_errors


def outline(ref: str, access: Access, device: str = "meta") -> tuple[Source, int]:
    """The structure of a model, without its weights.

    Args:
        ref: a folder, or a Hub id (`user/name`, `user/name@revision`). Merges and adapters are loaded with their
            weights: only they tell what follows a trunk, or how many classes there are.
        access: what the user allows.
        device: where the model is built: `meta` takes no memory, `cpu` gives random weights.

    Returns:
        The source, and the bytes of weights that are not downloaded yet.

    Raises:
        SourceError: it is not a model, has no weights, or its configuration cannot be built.
    """
    if Path(ref).is_dir():
        folder = Path(ref)
        if is_adapter(folder):
            return load_source(ref, access=access), 0
        weight_files(folder, access.allow_pickle)
        name = folder.resolve().name
        missing = 0
    elif HUB_ID.fullmatch(ref) and not Path(ref).exists():
        found, missing = look(ref, access)
        folder = found.folder
        name = found.name.partition("/")[2]
        if found.adapter:
            return load_source(ref, access=access), 0
    else:
        raise SourceError(no_model(ref))
    if str(read_json(folder / "config.json").get("model_type")).startswith("zipit"):
        return load_source(ref, access=access), 0
    return outline_folder(folder, name, device), missing


def outline_folder(folder: Path, name: str, device: str = "meta") -> Source:
    """The structure of the model in a folder, from its config.json alone; see `outline`.

    Raises:
        SourceError: its configuration cannot be built.
    """
    config = read_json(folder / "config.json")
    library = known_library(config, folder)
    with load_errors(
        f"{folder}/config.json describes no model that can be built", Exception
    ):  # libraries raise anything
        source = library.outline_folder(folder, config, device)
    return replace(source, name=name, folder=folder, origin={**source.origin, "folder": str(folder)})
