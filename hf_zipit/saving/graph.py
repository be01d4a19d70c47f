"""A merge as one traced function: from pixels to a named tensor for each output, with a batch of any size."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hf_zipit.errors import OutputError
from hf_zipit.models.configuration_zipit import ZipItConfig, joint_names
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel
from hf_zipit.running import ANSWERS, working_copy
from hf_zipit.saving.provenance import Provenance
from hf_zipit.sources.preprocessing import facts_of, preprocessing_of
from hf_zipit.text import first_line, size_text

INPUT, JOINT = "pixel_values", "logits"
_TRACED = 2  # images in the traced batch; tracers take sizes of 0 and 1 for constants
Field = tuple[str, str]  # a task, and a field of its output; "" is its main output


class Graph(nn.Module):
    """A copy of a merge on the CPU that returns `{name: tensor}`.

    Every task has its main output, under a safe form of the task's name. Further tensors in the output of its model are
    named after task and field. `logits` is the joint prediction over all these tasks, where there is one.

    Args:
        merged: the merge; it is not changed.
        tasks: the tasks to run, in the order of their outputs.

    Raises:
        OutputError: the merge does not run on an image of its stated input size, or an output holds no tensor.

    >>> Graph(merged, ["pets", "birds"])(pixels).keys()  # doctest: +SKIP
    dict_keys(['pets', 'birds', 'logits'])
    """

    merged: Any  # its parts are not typed

    def __init__(self, merged: ZipItPreTrainedModel, tasks: Sequence[str]) -> None:
        super().__init__()
        self.merged = working_copy(merged, torch.device("cpu"), channels_last=False)
        for parts in (self.merged.heads, self.merged.unmerge):
            for i, group in enumerate(merged.config.branches if len(parts) else ()):
                if {merged.config.tasks[k] for k in group}.isdisjoint(tasks):
                    parts[i] = nn.Identity()  # programs of torch keep weights that they never read
        self.tasks = list(tasks)
        self.size = preprocessing_of(merged)[0]
        heads = [head for head in merged.config.heads or [] if head["task"] in tasks]
        classifier = merged.config.model_type == ZipItConfig.model_type
        self.joint = classifier and len(tasks) > 1 and not any(head.get("problem") for head in heads)
        try:
            found, _ = self._run(self.pixels(1))
        except Exception as error:  # a network fails in many ways on an image that it cannot read
            raise OutputError(
                f"the merge cannot run on an image of its stated input size {size_text(self.size)} "
                f"({first_line(error)})"
            ) from error
        self.names = _safe_names(list(found))
        for task in tasks:
            if not any(name == task for name, _ in found):
                raise OutputError(f"task '{task}': the output of its model holds no tensor that could be exported")

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The outputs of all tasks, and the joint prediction, by name; `pixel_values (B, channels, H, W)`."""
        found, logits = self._run(pixel_values)
        out = {self.names[field]: value for field, value in found.items()}
        return {**out, JOINT: logits} if self.joint else out

    def _run(self, pixels: Tensor) -> tuple[dict[Field, Tensor], Any]:
        output = self.merged(pixel_values=pixels, tasks=self.tasks)
        answers = getattr(output, "task_logits", None) or output.task_outputs
        found = {(task, key): value for task in self.tasks for key, value in _tensors(answers[task]).items()}
        return found, getattr(output, "logits", None)

    def pixels(self, count: int) -> Tensor:
        """Noise in place of images, `(count, channels, H, W)`; always the same."""
        noise = torch.randn(count, *self.size, generator=torch.Generator().manual_seed(count))
        return noise.to(next(self.merged.parameters()).dtype)


def traced(graph: Graph) -> ExportedProgram:
    """The program of a graph. The first axis of its input is dynamic; it holds no paths of this machine.

    Raises:
        OutputError: the merge cannot be traced, or not with a batch of any size.
    """
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the libraries whose code is traced
            shapes = {INPUT: {0: Dim("batch")}}
            program = torch.export.export(graph, (graph.pixels(_TRACED),), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch raises many kinds of errors here
        raise OutputError(
            f"torch.export cannot trace the merge for batches of any size: {first_line(error)}"
        ) from error
    for inner in program.graph_module.modules():
        for node in inner.graph.nodes if isinstance(inner, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # file names of this machine
    return program


def facts(merged: ZipItPreTrainedModel, graph: Graph, license: Mapping[str, str]) -> dict[str, Any]:
    """What users of a graph must know, as plain values: tasks, classes, preprocessing, origin and license.

    Args:
        merged: the merge.
        graph: its graph.
        license: the license metadata of the merge.
    """
    about = Provenance.of(merged.config)
    heads = {head["task"]: head for head in merged.config.heads or []}
    tasks = []
    for task in graph.tasks:
        head = heads[task]
        names = {field: name for (owner, field), name in graph.names.items() if owner == task}
        entry = {"task": task, "output": names.pop("", None), "kind": head.get("kind", "image-classification")}
        entry |= {"other_outputs": names} if names else {}
        entry |= {"problem": head["problem"]} if head.get("problem") else {}
        tasks.append({**entry, "classes": [head["id2label"][i] for i in sorted(head["id2label"])]})
    out = {
        "tasks": tasks,
        "preprocessing": {"input": INPUT, "size": list(graph.size), **facts_of(merged)},
        "license": dict(license),
        "sources": [{key: value for key, value in source.items() if key != "path"} for source in about.sources],
        "generator": about.generator,
    }
    if graph.joint:
        classes = joint_names([(entry["task"], name) for entry in tasks for name in entry["classes"]])
        out["joint"] = {"output": JOINT, "classes": classes}
    return out


def _tensors(output: Any) -> dict[str, Tensor]:
    """The tensors in the output of a task's model by field, the main one under `""`."""
    if isinstance(output, Tensor):
        return {"": output}
    entries = output.items() if isinstance(output, Mapping) else ((str(i), value) for i, value in enumerate(output))
    found = {key: value for key, value in entries if isinstance(value, Tensor)}
    main = next((key for key in (*ANSWERS, "0") if key in found), None)
    return {"" if key == main else key: value for key, value in found.items()}


def _safe_names(fields: Sequence[Field]) -> dict[Field, str]:
    """A name for each output, of letters, digits and underscores, as ONNX wants them; none twice.

    >>> _safe_names([("a b", ""), ("a_b", ""), ("0-4", ""), ("logits", "")])  # doctest: +NORMALIZE_WHITESPACE
    {('a b', ''): 'a_b', ('a_b', ''): 'a_b_2', ('0-4', ''): '_0_4', ('logits', ''): 'logits_2'}
    """
    taken = {INPUT, JOINT}
    out: dict[Field, str] = {}
    for field in fields:
        plain = re.sub(r"\W", "_", "_".join(part for part in field if part), flags=re.ASCII)
        plain = f"_{plain}" if not plain or plain[0].isdigit() else plain
        number, name = 1, plain
        while name in taken:
            number += 1
            name = f"{plain}_{number}"
        taken.add(name)
        out[field] = name
    return out
