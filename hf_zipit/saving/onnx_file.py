"""ONNX files: the only place that knows the libraries of the extra `onnx`."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from hf_zipit.errors import OptionError, OutputError
from hf_zipit.saving.graph import INPUT
from hf_zipit.text import first_line

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
PREFIX = "hf_zipit."  # of the metadata properties
DATA = ".data"  # added to the name of a file whose weights do not fit into it
LARGEST = 1_500_000_000  # bytes of weights in the file itself; protobuf ends at 2 GB, with everything else


def check_installed() -> None:
    """Check that the libraries are there, before any work is done.

    Raises:
        OptionError: one of them is not.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise OptionError(f"the format onnx needs {' and '.join(missing)}: pip install 'hf-zipit[onnx]'")


def write_onnx(program: ExportedProgram, outputs: Sequence[str], facts: Mapping[str, Any], path: Path) -> None:
    """Write a program as an ONNX file; weights above `LARGEST` go into a second one, `NAME.onnx.data`.

    Args:
        program: a traced merge.
        outputs: the names of its outputs, in their order.
        facts: the metadata properties: each value is written as JSON, and each key behind `PREFIX`.
        path: the file.

    Raises:
        OutputError: ONNX has no equivalent of an operation.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the converter, about its own code
            made = torch.onnx.export(
                program,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes={INPUT: {0: "batch"}},  # for a program, only the name of the axis
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the converter raises many kinds of errors
        raise OutputError(f"torch.onnx cannot convert the merge: {first_line(error)}") from error
    if made is None:
        raise OutputError("torch.onnx has not converted the merge")
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # names of files on this machine, and what only the converter reads
        for value in node.outputs:
            if value.name in outputs and not value.is_graph_output():
                value.name = f"{value.name}.inner"  # a task may have the name of an operation
    for key, value in facts.items():
        made.model.metadata_props[f"{PREFIX}{key}"] = json.dumps(value)
    weights = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    made.save(path, external_data=weights > LARGEST)


def open_onnx(path: Path) -> Callable[[Tensor], dict[str, Tensor]]:
    """A written file as a function of pixels, run by onnxruntime on the CPU.

    Raises:
        OutputError: onnxruntime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # it has its own kinds
        raise OutputError(f"onnxruntime cannot load the merge: {first_line(error)}") from error
    names = [output.name for output in session.get_outputs()]

    def run(pixels: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {INPUT: pixels.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return run
