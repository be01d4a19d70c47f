# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a merged classifier with a head per task. Copied into every merged repository."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedConfig

LARGEST = 10**7  # of the whole numbers in the arguments of a model
Rule = tuple[str, Callable[[Any], bool]]  # what a field holds, in words and as a test


def is_whole(value: Any, low: int = 0) -> bool:
    """Whether a value is a whole number of at least `low`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def is_text(value: Any) -> bool:
    """Whether a value is a text."""
    return isinstance(value, str)


def are(value: Any, accepts: Callable[[Any], bool]) -> bool:
    """Whether a value is a list all of whose entries are accepted."""
    return isinstance(value, list | tuple) and all(map(accepts, value))


def is_map(value: Any, accepts: Callable[[Any], bool] = lambda _: True) -> bool:
    """Whether a value is a mapping from text, all of whose values are accepted."""
    return isinstance(value, dict) and all(isinstance(key, str) and accepts(held) for key, held in value.items())


def is_model(value: Any) -> bool:
    """Whether a value describes how a model is built."""
    if not is_map(value) or not is_text(value.get("library")) or not is_text(value.get("architecture", "")):
        return False
    return is_map(value.get("model_args", {})) and is_map(value.get("config", {})) and _is_sane(value)


def _is_sane(value: Any) -> bool:
    """Whether no number is so large that a library would make as many objects or layers until memory ends."""
    if isinstance(value, dict | list | tuple):
        return all(map(_is_sane, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or value <= LARGEST


def _is_id(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, str) and value.isdecimal())


def _are_classes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_id(key) and (is_text(name) or is_whole(name)) for key, name in value.items()
    )


def _is_unmerge(value: Any) -> bool:
    return is_map(value) and is_whole(value.get("axis"), -4) and is_whole(value.get("size"), 1)


def _keeps_heads(space: Any) -> bool:
    return isinstance(space, dict) and bool(space.get("heads"))


def _are_attributes(values: Any) -> bool:
    """Whether these are numbers that depend on the number of attention heads, none of them absurd."""
    return isinstance(values, dict) and all(
        is_text(name)
        and any(word in name for word in ("head", "scal", "dim"))
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and 1e-4 <= value <= LARGEST
        for name, value in values.items()
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


_TEXT: Rule = ("a text", is_text)
_STEPS: Rule = ("a list of the names of steps", lambda value: are(value, is_text))
RULES: dict[str, Rule] = {
    "backbone": (
        "a mapping with a library, an architecture, and its arguments, none of them above 10 million",
        is_model,
    ),
    "trunk": _STEPS,
    "head": _STEPS,
    "owns": ("a mapping of steps to lists of names", lambda value: is_map(value, lambda v: are(v, is_text))),
    "cut": _TEXT,
    "unmerge": ("a mapping with an axis and a size", _is_unmerge),
    "heads": ("a list of mappings", lambda value: are(value, is_map)),
    "shapes": ("a mapping of names to shapes", lambda value: is_map(value, lambda v: are(v, is_whole))),
    "attributes": (
        "a mapping of modules to mappings of the attributes of attention heads to positive numbers",
        lambda value: is_map(value, _are_attributes),
    ),
    "active_task": _TEXT,
    "zipit": ("a mapping", is_map),
}
HEAD_RULES: dict[str, Rule] = {
    "task": _TEXT,
    "id2label": ("a mapping of ids to names", _are_classes),
    "source": ("the number of a source", is_whole),
    "branch": ("the number of a branch", is_whole),
    "problem": ("binary, multi-label or regression", lambda value: value in ("binary", "multi-label", "regression")),
    "reduce_labels": ("true or false", lambda value: isinstance(value, bool)),
}


def joint_names(names: Sequence[tuple[str, str]]) -> list[str]:
    """One name for each class of all tasks, none of them twice.

    A name that several tasks have is preceded by the task; a name that one task has twice is followed by a number.

    Args:
        names: task and name of every class.

    >>> joint_names([("birds", "crane"), ("birds", "crane"), ("cars", "bus")])
    ['birds/crane#0', 'birds/crane#1', 'cars/bus']
    """
    plain = [name for _, name in names]
    if len(set(plain)) == len(plain):
        return plain
    counts = Counter(names)
    ways = [
        [f"{task}/{name}" for task, name in names],
        [f"{task}/{name}#{i}" if counts[task, name] > 1 else f"{task}/{name}" for i, (task, name) in enumerate(names)],
    ]
    numbered = [f"{task}/{name}#{i}" for i, (task, name) in enumerate(names)]
    return next((way for way in ways if len(set(way)) == len(way)), numbered)


class ZipItConfig(PreTrainedConfig):
    """Everything needed to rebuild a merged model except its weights.

    Attributes:
        backbone: how the backbone is built: `{"library": "timm", "architecture": name, "model_args": {...}}` or
            `{"library": "transformers", "architecture": class name, "config": {...}}`.
        trunk: the merged steps in running order: module paths of the backbone, `call:method`, or `op:name`. With
            `after=`, they are parts of the backbone's own forward.
        head: the steps after the cut, of which every branch has its own copy. Without trunk and head steps the whole
            backbone is merged, and its classifier holds the classes of all tasks.
        owns: for steps that use more than the module of their name, the modules and parameters they use.
        cut: the name of the cut as the user gave it; `None` for a full merge.
        unmerge: `{"axis": 1, "size": n}`: each head gathers its own n units from the trunk's output, or as many as
            `shapes` says. `None` if the heads read the merged units directly, as the classifiers of a full merge do.
        heads: one entry per task, in the order of the joint classes: `{"task", "id2label", "source", "branch"}`. Tasks
            of one branch share the layers after the trunk, and their classes lie side by side in its classifier. A
            task that does not predict one class of several has a `problem`: `binary` (one logit), `multi-label` or
            `regression`.
        shapes: shapes of the parameters that differ from those the backbone is built with, by name.
        attributes: attributes of the trunk's modules that differ from those the backbone is built with, by the path of
            the module: the number of attention heads and what depends on it.
        active_task: the task whose classes `logits` holds; `None` for the joint classes of all tasks.
        zipit: provenance: software, sources, recipe, data, and the composition of the merged units.
    """

    model_type = "zipit"
    rules: ClassVar[dict[str, Rule]] = RULES
    head_rules: ClassVar[dict[str, Rule]] = HEAD_RULES
    backbone: dict[str, Any] | None = None
    trunk: list[str] | None = None
    head: list[str] | None = None
    owns: dict[str, list[str]] | None = None
    cut: str | None = None
    unmerge: dict[str, int] | None = None
    heads: list[dict[str, Any]] | None = None
    shapes: dict[str, list[int]] | None = None
    attributes: dict[str, dict[str, Any]] | None = None
    active_task: str | None = None
    zipit: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for key, (what, accepts) in self.rules.items():
            value = getattr(self, key)
            if value is not None and not accepts(value):
                raise ValueError(f"{key} is {_short(value)}, not {what}")
        if not self.attributes and any(_keeps_heads(space) for space in (self.zipit or {}).get("spaces") or []):
            raise ValueError("attributes are missing: the merge has other numbers of attention heads than its parents")
        self.heads = [{**head, "id2label": self._classes(n, head)} for n, head in enumerate(self.heads or [])]
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"heads name a task twice: {', '.join(self.tasks)}")
        if self.active_task is not None and self.active_task not in self.tasks:
            raise ValueError(f"unknown active_task '{self.active_task}'; tasks: {', '.join(self.tasks)}")
        chosen = [head for head in self.heads if self.active_task in (None, head["task"])]
        names = [(head["task"], head["id2label"][i]) for head in chosen for i in sorted(head["id2label"])]
        if names:  # the joint labels are always derived, never read from the file
            self.id2label = dict(enumerate(joint_names(names)))
            self.label2id = {name: i for i, name in self.id2label.items()}
            for key in ("num_labels", "id2label", "label2id"):
                kwargs.pop(key, None)
        problems = {head.get("problem") for head in chosen} - {None}
        if problems:  # pipelines then apply a sigmoid, or nothing to outputs that mean different things
            alike = all(head.get("problem") in ("binary", "multi-label") for head in chosen)
            self.problem_type = "multi_label_classification" if alike else "regression"
        super().__post_init__(**kwargs)

    def _classes(self, number: int, head: dict[str, Any]) -> dict[int, str]:
        """The classes of a head by id, after a check of the head."""
        for key, (what, accepts) in self.head_rules.items():
            if key not in head and key in ("task", "id2label", "source"):
                raise ValueError(f"heads[{number}] has no {key}")
            if key in head and not accepts(head[key]):
                raise ValueError(f"{key} of heads[{number}] is {_short(head[key])}, not {what}")
        named: dict[int, str] = {int(key): str(name) for key, name in head["id2label"].items()}
        if sorted(named) != list(range(len(head["id2label"]))):
            raise ValueError(
                f"id2label of heads[{number}] has the ids {_short(sorted(named))}, not 0 to {len(named) - 1}"
            )
        return named

    @property
    def tasks(self) -> list[str]:
        """Task names, in the order of the joint classes."""
        return [head["task"] for head in self.heads or []]

    @property
    def branches(self) -> list[list[int]]:
        """The indices of each branch's tasks; without head steps the whole network is the only branch."""
        heads = self.heads or []
        if not self.head:
            return [list(range(len(heads)))]
        found: dict[int, list[int]] = {}
        for i, head in enumerate(heads):
            found.setdefault(head.get("branch", i), []).append(i)
        return list(found.values())

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; `active_task` is set before the joint labels are derived."""
        if "active_task" in kwargs:
            config_dict = {**config_dict, "active_task": kwargs.pop("active_task")}
        return super().from_dict(config_dict, **kwargs)
