"""The model libraries. A new library is one file with the functions of `Library`, and its name in `LIBRARIES`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from hf_zipit.errors import SourceError
from hf_zipit.sources import from_smp, from_timm, from_transformers
from hf_zipit.sources.access import Access
from hf_zipit.sources.source import Source


class Library(Protocol):
    """What the module of a library provides."""

    def owns(self, config: Mapping[str, Any]) -> bool:
        """Whether the library wrote this `config.json`."""

    def read_folder(
        self, folder: Path, config: dict[str, Any], name: str, origin: dict[str, Any], access: Access
    ) -> Source:
        """Load a model from a folder that the library wrote.

        Args:
            folder: holds config.json and the weights.
            config: the content of config.json.
            name: the name of the source.
            origin: where the folder came from; the hash of the weights is added.
            access: what the user allows.

        Raises:
            SourceError: the weights are missing, damaged or do not fit, or the library cannot build the model.
        """

    def outline_folder(self, folder: Path, config: dict[str, Any], device: str) -> Source:
        """Build a model from its configuration, with random weights; without any on the device `meta`.

        Models that are not plain classifiers are always built on the CPU: sharing their backbone takes forward passes.
        """

    def wrap_module(self, model: nn.Module, model_args: dict[str, Any] | None) -> Source | None:
        """A module in memory as a source; `None` if the library did not make it."""


LIBRARIES: tuple[Library, ...] = (from_timm, from_smp, from_transformers)


def library_of(config: Mapping[str, Any]) -> Library | None:
    """The library that wrote a `config.json`, if it is a known one."""
    return next((library for library in LIBRARIES if library.owns(config)), None)


def known_library(config: Mapping[str, Any], folder: Path) -> Library:
    """The library that wrote the `config.json` of a folder.

    Raises:
        SourceError: no known library wrote it.
    """
    library = library_of(config)
    if library is None:
        raise SourceError(f"{folder}/config.json names neither a timm architecture nor a transformers model_type")
    return library
