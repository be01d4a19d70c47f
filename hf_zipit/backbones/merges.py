"""Merges as sources of another merge: where their trunk can be observed, and where they can be cut.

`sources.merges` says which of their layers stay shared, and which belong to their tasks.
"""

from collections.abc import Sequence
from dataclasses import replace

from hf_zipit.errors import OptionError, SourceError
from hf_zipit.models.steps import step_name
from hf_zipit.sources.source import Source
from hf_zipit.specs.cuts import channel_axis
from hf_zipit.specs.spaces import Binding, Probe


def observed_within(binding: Binding, source: Source) -> Binding:
    """The binding with every space observed inside the trunk of a merge, as the layers after it belong to its tasks.

    Args:
        binding: The spec bound to the merge.
        source: A merge whose tasks have separate layers after its trunk.

    Raises:
        SourceError: the steps of the trunk are not those of the spec, or its output cannot be observed.
    """
    trunk = source.trunk or ()
    if binding.steps[: len(trunk)] != trunk:
        raise SourceError(f"the trunk of {source.name} ({', '.join(trunk)}) does not follow the steps of its spec")
    last = trunk[-1]
    spaces = dict(binding.spaces)
    for name, space in binding.spaces.items():
        inside = tuple(probe for probe in space.probes if binding.under(trunk, [probe.module]))
        if inside or name != binding.after[last]:
            spaces[name] = replace(space, probes=inside)
            continue
        if ":" in step_name(last):
            raise SourceError(f"{source.name}: the output of its trunk, after {last}, cannot be observed")
        tokens = channel_axis(source.model, binding, len(trunk), source.input_size) == -1
        spaces[name] = replace(space, probes=(Probe(last, "out", tokens),))
    return replace(binding, spaces=spaces)


def check_cut(sources: Sequence[Source], trunk: tuple[str, ...], calibrate: str) -> None:
    """Refuse a cut or a calibration that a merge among the sources does not support.

    Args:
        sources: The models.
        trunk: The steps up to which they are to be merged.
        calibrate: Name of the calibration.

    Raises:
        OptionError: a source is a merge whose tasks have separate layers, and its trunk is not `trunk`, or the
            calibration is `repair`.
    """
    for source in sources:
        if source.trunk is not None and source.trunk != trunk:
            need = f"the same cut ({source.cut})" if source.cut else "no cut"
            raise OptionError(
                f"{source.name} is a merge up to {source.trunk[-1]}; the layers after it belong to its tasks, so it "
                f"can only be merged again with {need}"
            )
        if source.trunk is not None and calibrate == "repair":
            raise OptionError(
                f"calibrate is 'repair': it compares with whole parents, but {source.name} is a merge with separate "
                "layers for each task; use batchnorm, refit or none"
            )
