# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""What merged models of all kinds share: task names, saving, pushing. A leaf file, copied into merged repositories.

It needs torch, transformers and huggingface_hub, and nothing else of hf-zipit but its configuration.
"""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .configuration_zipit import ZipItConfig

COMPANIONS = ("README.md", "zipit_config.yml", "zipit_spec.yaml", "preprocessor_config.json")
OWN_ARCHITECTURES = {"cifar_resnet20": "cifar_resnet", "cifar_vgg11": "cifar_vgg"}  # by the files that define them
BUILDER = "modeling_zipit.py"  # imports them where they are needed
_REPLACED = ["*.safetensors", "*.safetensors.index.json", "*.py", "preprocessor_config.json"]  # of an earlier merge


class ZipItPreTrainedModel(PreTrainedModel):
    """What all merged models share: how tasks are named, and how a merge is saved."""

    config: ZipItConfig
    trunk: nn.Module
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    base_model_prefix = "trunk"
    model_tags = ["zipit", "merge"]  # noqa: RUF012  (transformers reads a list)
    auto_classes: tuple[str, ...] = ()  # the Auto classes that load it where the code is trusted
    spec_text: str | None = None  # the spec it was merged with, where it is known
    places: dict[str, Any] | None = None  # where sources and data were, for the recipe that is saved beside the model
    image_processor: Any = None  # transformers sources: what is saved beside the model
    companions: dict[str, str] | None = None  # texts that are saved beside the model: card, recipe, spec
    origin: tuple[Any, str | None] | None = None  # where it was loaded from, and the revision

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load as every model of transformers, and remember from where, so that saving it keeps its card."""
        out = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = out[0] if isinstance(out, tuple) else out
        model.origin = (pretrained_model_name_or_path, kwargs.get("revision"))
        return out

    def _chosen(self, tasks: Sequence[str] | str | None) -> list[str]:
        known = self.config.tasks
        if tasks is None:
            return known if self.config.active_task is None else [self.config.active_task]
        tasks = [tasks] if isinstance(tasks, str) else list(tasks)
        unknown = [task for task in tasks if task not in known]
        if unknown or not tasks:
            raise ValueError(f"unknown task {unknown[0] if unknown else tasks!r}; tasks: {', '.join(known)}")
        return tasks

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the model, its code files, card, recipe and spec, after making sure that its config describes it.

        Raises:
            ValueError: as `check_described`.
        """
        self.check_described()
        type(self.config).register_for_auto_class()  # so the code files go along
        type(self).register_for_auto_class(self.auto_classes[0])
        name = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = dict.fromkeys(self.auto_classes, name)
        super().save_pretrained(save_directory, *args, **kwargs)
        _remove_unused(Path(save_directory), str(self.config.to_dict()))
        if not kwargs.get("is_main_process", True):
            return
        if self.image_processor is not None:
            self.image_processor.save_pretrained(save_directory)
        for name, text in (self.companions or self._loaded_with()).items():
            Path(save_directory, name).write_text(text, encoding="utf-8")

    def check_described(self) -> None:
        """Make sure that the config alone builds this model.

        Raises:
            ValueError: a backbone that was given in memory is not what its name and arguments build, or its arguments
                are no JSON.
        """
        try:
            json.dumps(self.config.backbone)
        except TypeError as error:
            raise ValueError(
                f"{(self.config.backbone or {}).get('architecture')} cannot be rebuilt: its arguments are not all "
                f"plain values ({error}); its merges run, but cannot be saved"
            ) from None
        with torch.device("meta"):
            planned = {k: v.shape for k, v in type(self)(self.config).state_dict().items()}
        mine = {k: v.shape for k, v in self.state_dict().items()}
        odd = sorted(k for k in planned.keys() | mine.keys() if planned.get(k) != mine.get(k))
        if odd:
            raise ValueError(
                f"{(self.config.backbone or {}).get('architecture')} cannot be rebuilt by name: {odd[0]} differs. "
                "Merge Hub-format folders, whose config.json holds the models' arguments, or "
                "hf_zipit.load_source(module, model_args={...})"
            )

    def _loaded_with(self) -> dict[str, str]:
        """The texts beside the weights that this model was loaded from."""
        place, revision = self.origin or (None, None)
        if place is None:
            return {}
        quiet = dict.fromkeys([f"_raise_exceptions_for_{k}" for k in ("missing_entries", "connection_errors")], False)
        files = {name: cached_file(place, name, revision=revision, **quiet) for name in COMPANIONS}
        return {name: Path(file).read_text(encoding="utf-8") for name, file in files.items() if file}

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
        token: str | None = None,
        **save_arguments: Any,
    ) -> CommitInfo:
        """Upload the model with its card, code files and recipe in one go; see `upload` for the arguments."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_arguments)
            return upload(HfApi(token=token), folder, repo_id, private, revision, create_pr, commit_message)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """All weights come from the checkpoint; only buffers that are never saved need values."""
        for name in ("init_non_persistent_buffers", "_init_buffers"):
            if hasattr(module, name):
                getattr(module, name)()
                return


def _remove_unused(folder: Path, config: str) -> None:
    """Remove the code of architectures that a merge does not have, and the lines that would ask for it."""
    for architecture, file in OWN_ARCHITECTURES.items():
        code, builder = folder / f"{file}.py", folder / BUILDER
        if architecture not in config and code.is_file():
            code.unlink()
            text = builder.read_text(encoding="utf-8")
            builder.write_text(re.sub(rf"    if .*:\n        from \.{file} import .*\n", "", text), encoding="utf-8")


def upload(
    api: HfApi,
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> CommitInfo:
    """Upload a folder as it is, and remove weights and code of an earlier merge; the repository is made if needed.

    Args:
        api: the client, with the access token.
        folder: what to upload, but for hidden files.
        repo_id: `user/name`.
        private: whether a new repository is private; `None` follows the account's settings.
        revision: the branch to write to, made if needed.
        create_pr: open a pull request instead.
        commit_message: the title of the commit or pull request.
    """
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    return api.upload_folder(
        folder_path=folder,
        repo_id=name,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Merge models with hf-zipit",
        ignore_patterns=[".*"],
        delete_patterns=_REPLACED,
    )
