"""Write a merge, whatever its cut, as one file that runs without hf-zipit: ONNX, or a program of torch.export."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from hf_zipit.errors import OptionError, OutputError
from hf_zipit.files.place import check_place
from hf_zipit.files.single import with_data, write_with_data
from hf_zipit.models.configuration_zipit import ZipItConfig
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.saving.graph import JOINT, Graph, facts, traced
from hf_zipit.saving.license import common_license
from hf_zipit.saving.onnx_file import check_installed, open_onnx, write_onnx
from hf_zipit.saving.provenance import Provenance
from hf_zipit.text import first_line

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}  # by format
FACTS = "hf_zipit.json"  # the extra file in a program of torch.export
TOLERANCE = 1e-3  # relative to the largest value of an output
_BATCHES = (1, 3)  # neither is the size of the traced batch


def check_target(file: str | Path, format: str, overwrite: bool = False) -> Path:
    """Check that a file may be written in a format, before any work is done.

    Raises:
        OptionError: the format is unknown or its extra is not installed, the file exists, or its name does not fit.
        OutputError: there is no permission, or the disk is full.
    """
    file = Path(file)
    if format not in SUFFIXES:
        raise OptionError(
            f"unknown format '{format}'; formats: {', '.join(SUFFIXES)}. Ordinary checkpoints are written by "
            "hf_zipit.save(merged, folder, library=...)"
        )
    if file.suffix != SUFFIXES[format]:
        raise OptionError(f"{file}: the format {format} is one file, whose name ends with {SUFFIXES[format]}")
    for path in with_data(file):
        if path.is_dir():
            raise OptionError(f"{path} is a folder: choose another file")
        if path.exists() and not overwrite:
            raise OptionError(
                f"{path} exists already: choose another file, or replace it (overwrite=True, or --overwrite)"
            )
    check_place(file.parent if file.exists() else file)
    if format == "onnx":
        check_installed()
    return file


def export(
    model: ZipItPreTrainedModel,
    file: str | Path,
    *,
    format: str = "onnx",
    tasks: Sequence[str] | str | None = None,
    overwrite: bool = False,
    license: str | None = None,
) -> Path:
    """Write a merge as one file that runs without hf-zipit, and check that it computes the same.

    The input is `pixel_values (B, channels, H, W)`, with any B and the height and width of the merge's preprocessing.
    Every task has an output that is named after it; `logits` is the joint prediction, where there is one. Weights are
    in float32. Classes, preprocessing, parents and license are written into the file (see `docs/export.md`).

    Before the file appears, it is loaded again and run on the CPU with one and with three images of noise. If an output
    differs from the merge's by more than 0.1 % of its largest value, nothing is written.

    Args:
        model: the merged model; it is not changed.
        file: the file to write; its name ends with `.onnx` or `.pt2`. ONNX files of more than 1.5 GB have their weights
            in a second file, `NAME.onnx.data`.
        format: `onnx` (needs the extra `onnx`), or `torch` for a program of `torch.export`.
        tasks: the tasks to keep; by default the active task, or all if none is active.
        overwrite: replace an earlier file.
        license: license of the merged model; by default the one that all parents state.

    Returns:
        The file.

    Raises:
        OptionError: the file exists, or a format or task is unknown; or the extra is not installed.
        SourceError: the parents state different licenses, and none is given.
        OutputError: the merge cannot be traced or converted, the file computes something else, or it cannot be written.

    >>> export(merged, "merged.onnx")  # doctest: +SKIP
    >>> onnxruntime.InferenceSession("merged.onnx").run(["birds"], {"pixel_values": pixels})  # doctest: +SKIP
    """
    write_graph(model, file, format, tasks, overwrite, license)
    return Path(file)


def write_graph(
    model: ZipItPreTrainedModel,
    file: str | Path,
    format: str = "onnx",
    tasks: Sequence[str] | str | None = None,
    overwrite: bool = False,
    license: str | None = None,
) -> dict[str, Any]:
    """Write a merge as one file, as `export` does. Returns what the file says of itself; see `graph.facts`."""
    file = check_target(file, format, overwrite)
    license_metadata = common_license(Provenance.of(model.config).sources, license)
    chosen = _chosen(model.config, tasks)
    try:
        model.check_finite()
    except ValueError as error:
        raise OutputError(f"{file} is not written: {error}") from None
    graph = Graph(model, chosen)
    program = traced(graph)
    known = facts(model, graph, license_metadata)
    outputs = [*graph.names.values(), *([JOINT] if graph.joint else [])]

    def write(path: Path) -> None:
        if format == "onnx":
            write_onnx(program, outputs, known, path)
            _check(graph, open_onnx(path), file)
        else:
            _write_program(program, json.dumps(known), path)
            _check(graph, _open_program(path), file)
        check_target(file, format, overwrite)  # another process may have written it in the meantime

    try:
        write_with_data(file, write)
    except OSError as error:
        raise OutputError(f"cannot write {file}: {error.strerror or error}. No partial result was left") from error
    return known


def _chosen(config: ZipItConfig, tasks: Sequence[str] | str | None) -> list[str]:
    """The tasks to keep, each once and in the order of the merge.

    Raises:
        OptionError: one is unknown, or none is given.
    """
    if tasks is None:
        return config.tasks if config.active_task is None else [config.active_task]
    given = [tasks] if isinstance(tasks, str) else list(tasks)
    unknown = [task for task in given if task not in config.tasks]
    if unknown or not given:
        raise OptionError(f"unknown task '{unknown[0] if unknown else ''}'; tasks: {', '.join(config.tasks)}")
    return [task for task in config.tasks if task in given]


def _write_program(program: ExportedProgram, facts: str, path: Path) -> None:
    torch.export.save(program, path, extra_files={FACTS: facts})


def _open_program(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    run: Callable[[Tensor], dict[str, Tensor]] = torch.export.load(path).module()
    return run


@torch.no_grad()
def _check(graph: Graph, written: Callable[[Tensor], dict[str, Tensor]], file: Path) -> None:
    """Compare what was written with the merge.

    Raises:
        OutputError: an output is missing or differs, or the written program does not run.
    """
    for count in _BATCHES:
        pixels = graph.pixels(count)
        try:
            its = written(pixels)
        except Exception as error:  # runtimes raise their own kinds
            raise OutputError(
                f"{file} is not written: it does not run on {count} images: {first_line(error)}"
            ) from error
        mine = graph(pixels)
        if its.keys() != mine.keys():
            raise OutputError(f"{file} is not written: it has the outputs {', '.join(its)}, not {', '.join(mine)}")
        for name, value in mine.items():
            same = its[name].shape == value.shape
            far = float((its[name].double() - value.double()).abs().max()) if same else float("inf")
            if not far <= TOLERANCE * max(1e-6, float(value.abs().max())):  # NaN is far as well
                raise OutputError(
                    f"{file} is not written: its output '{name}' differs from the merge's by {far:.2g} on {count} "
                    "images"
                )
