"""The only place that decides between a merge of classifiers and a multitask merge."""

from collections.abc import Sequence
from pathlib import Path

from hf_zipit.assembly.classifier import Classifiers
from hf_zipit.assembly.multitask import Multitask
from hf_zipit.assembly.parents import Parents
from hf_zipit.sources.in_memory import MEMORY
from hf_zipit.sources.source import Source


def kind_of(sources: Sequence[Source], backbone: str | None = None) -> type[Parents]:
    """`Classifiers` for classifiers of one Python class; `Multitask` for anything else, or if a backbone is named.

    Modules in memory that no library can rebuild keep their own layers, so they are `Multitask` as well.

    Args:
        sources: one or more models.
        backbone: the module path of the backbone, if the user named it.
    """
    classes = {type(source.model) for source in sources}
    others = any(source.kind != "image-classification" for source in sources)
    in_memory = any(source.backbone.get("library") == MEMORY for source in sources)
    return Multitask if backbone is not None or others or in_memory or len(classes) > 1 else Classifiers


def open_parents(sources: Sequence[Source], spec: str | Path | None = None, backbone: str | None = None) -> Parents:
    """Open models as `Classifiers` or `Multitask`; see `Parents.open`.

    Args:
        sources: one or more models.
        spec: a spec file to use instead of the shipped ones or a trace.
        backbone: the module path of the backbone, if the user named it.

    Raises:
        SourceError: the models have nothing in common; the message names the first difference.
        SpecError: no spec describes them.

    >>> parents = open_parents([load_source("user/pets"), load_source("user/birds")])  # doctest: +SKIP
    >>> parents.cut_costs()[0].name  # doctest: +SKIP
    'conv1'
    """
    return kind_of(sources, backbone).open(sources, spec, backbone)
