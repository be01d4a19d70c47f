# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a merged multi-head model. A leaf file: it is copied into every merged repository."""

from typing import Any

from transformers import PreTrainedConfig


class ZipItConfig(PreTrainedConfig):
    """What is needed to rebuild a merged model: the backbone, which steps are trunk and head, and the tasks.

    Attributes:
        backbone: `{"library": "timm", "architecture": name, "model_args": {...}}` or
            `{"library": "transformers", "architecture": name of the class, "config": {...}}`.
        trunk: the merged steps in running order: module paths of the backbone, `call:method`, or `op:name`.
        head: the steps after the cut; every task has its own copy. Without trunk and head steps the whole backbone
            is merged, and its classifier has the classes of all tasks.
        owns: for steps that are methods, the modules and parameters they use.
        cut: the name the user gave the cut, `None` for a full merge.
        unmerge: `{"axis": 1, "size": n}`: each head reads its own n units of the trunk's output; `None` for a full
            merge, where the classifiers read merged units.
        heads: one entry per task, in the order of the joint classes: `{"task", "id2label", "source", "branch"}`. Tasks
            of one branch share the layers behind the trunk, and have their classes side by side in its classifier.
        shapes: parameters whose shape differs from the one the backbone is built with.
        active_task: the task whose classes `logits` holds; `None` for the joint classes of all tasks.
        zipit: provenance: sources, method, options, data, and the composition of the merged units.
    """

    model_type = "zipit"
    backbone: dict[str, Any] | None = None
    trunk: list[str] | None = None
    head: list[str] | None = None
    owns: dict[str, list[str]] | None = None
    cut: str | None = None
    unmerge: dict[str, int] | None = None
    heads: list[dict[str, Any]] | None = None
    shapes: dict[str, list[int]] | None = None
    active_task: str | None = None
    zipit: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.heads = [
            {**head, "id2label": {int(k): v for k, v in head["id2label"].items()}} for head in self.heads or []
        ]
        if self.active_task is not None and self.active_task not in self.tasks:
            raise ValueError(f"unknown active_task '{self.active_task}'; tasks: {', '.join(self.tasks)}")
        chosen = [head for head in self.heads if self.active_task in (None, head["task"])]
        names = [(head["task"], head["id2label"][i]) for head in chosen for i in sorted(head["id2label"])]
        if names:  # derived, never trusted from the file
            clash = len({name for _, name in names}) < len(names)
            self.id2label = {i: f"{task}/{name}" if clash else name for i, (task, name) in enumerate(names)}
            self.label2id = {name: i for i, name in self.id2label.items()}
            for key in ("num_labels", "id2label", "label2id"):
                kwargs.pop(key, None)
        super().__post_init__(**kwargs)

    @property
    def tasks(self) -> list[str]:
        """Task names, in the order of the joint classes."""
        return [head["task"] for head in self.heads or []]

    @property
    def branches(self) -> list[list[int]]:
        """The numbers of each branch's tasks; without head steps the one branch is the whole network."""
        heads = self.heads or []
        if not self.head:
            return [list(range(len(heads)))]
        found: dict[int, list[int]] = {}
        for i, head in enumerate(heads):
            found.setdefault(head.get("branch", i), []).append(i)
        return list(found.values())

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Fold `active_task` in before the joint labels are derived."""
        if "active_task" in kwargs:
            config_dict = {**config_dict, "active_task": kwargs.pop("active_task")}
        return super().from_dict(config_dict, **kwargs)
