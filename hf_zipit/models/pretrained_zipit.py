# Copyright the hf-zipit authors. Licensed under the Apache License, Version 2.0.
"""The base class of merged models: choosing tasks, saving and pushing. Copied into every merged repository.

It imports torch, transformers, huggingface_hub, and the configuration beside it.
"""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo, HfApi
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .configuration_zipit import ZipItConfig

SIDECARS = ("README.md", "zipit_config.yml", "zipit_spec.yaml", "preprocessor_config.json")
OWN_ARCHITECTURES = {
    "cifar_resnet20": "cifar_resnet",
    "cifar_vgg11": "cifar_vgg",
}  # architecture -> module that defines it
PLACE = "path/or/id"  # what the examples of a card load, until an upload names the repository
BUILDER = "modeling_zipit.py"  # imports these modules when they are needed
# files of an earlier upload that a new one deletes if it does not replace them
_REPLACED = ["*.safetensors", "*.safetensors.index.json", "*.py", "preprocessor_config.json"]


class ZipItPreTrainedModel(PreTrainedModel):
    """The base class of merged models.

    Attributes:
        auto_classes: the transformers Auto classes that load the model with `trust_remote_code=True`.
        spec_text: the spec the model was merged with, if known.
        locations: paths or ids that sources and data were read from, for the recipe beside the model.
        image_processor: image processor to save beside the model, for parents from transformers.
        sidecars: texts to save beside the model, by file name: card, recipe and spec.
        origin: folder or Hub id that the model was loaded from, and the revision.
    """

    config: ZipItConfig
    trunk: nn.Module
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    base_model_prefix = "trunk"
    model_tags = ["zipit", "merge"]  # noqa: RUF012  (transformers reads a list)
    auto_classes: tuple[str, ...] = ()
    spec_text: str | None = None
    locations: dict[str, Any] | None = None
    image_processor: Any = None
    sidecars: dict[str, str] | None = None
    origin: tuple[Any, str | None] | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the origin is recorded, so that saving the model again keeps its card."""
        out = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = out[0] if isinstance(out, tuple) else out
        model.origin = (pretrained_model_name_or_path, kwargs.get("revision"))
        return out

    def _chosen(self, tasks: Sequence[str] | str | None) -> list[str]:
        """The tasks to run: the given ones, else the active one, else all."""
        known = self.config.tasks
        if tasks is None:
            return known if self.config.active_task is None else [self.config.active_task]
        tasks = [tasks] if isinstance(tasks, str) else list(tasks)
        unknown = [task for task in tasks if task not in known]
        if unknown or not tasks:
            raise ValueError(f"unknown task {unknown[0] if unknown else tasks!r}; tasks: {', '.join(known)}")
        return tasks

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the model with its code files, card, recipe and spec, as in transformers.

        Raises:
            ValueError: the config does not describe the model (see `check_described`), or its weights are not finite.
        """
        self.check_described()
        self.check_finite()
        type(self.config).register_for_auto_class()  # makes transformers copy the code files
        type(self).register_for_auto_class(self.auto_classes[0])
        name = f"{type(self).__module__.rpartition('.')[2]}.{type(self).__name__}"
        self.config.auto_map = dict.fromkeys(self.auto_classes, name)
        super().save_pretrained(save_directory, *args, **kwargs)
        _remove_unused(Path(save_directory), str(self.config.to_dict()))
        if not kwargs.get("is_main_process", True):
            return
        if self.image_processor is not None:
            self.image_processor.save_pretrained(save_directory)
        for name, text in (self.sidecars or self._sidecars_at_origin()).items():
            Path(save_directory, name).write_text(text, encoding="utf-8")

    def check_described(self) -> None:
        """Check that the config alone rebuilds this model.

        Raises:
            ValueError: the architecture's name and arguments build another model than the one passed in memory, or an
                argument cannot be written as JSON.
        """
        try:
            json.dumps(self.config.backbone)
        except TypeError as error:
            raise ValueError(
                f"{(self.config.backbone or {}).get('architecture')} cannot be rebuilt: one of its arguments is not "
                f"a plain value ({error}). A merge of it runs, but cannot be saved"
            ) from None
        with torch.device("meta"):
            planned = {k: v.shape for k, v in type(self)(self.config).state_dict().items()}
        actual = {k: v.shape for k, v in self.state_dict().items()}
        different = sorted(k for k in planned.keys() | actual.keys() if planned.get(k) != actual.get(k))
        if different:
            raise ValueError(
                f"{(self.config.backbone or {}).get('architecture')} cannot be rebuilt by name: {different[0]} "
                "differs. Merge Hub-format folders, whose config.json holds the models' arguments, or pass "
                "hf_zipit.load_source(module, model_args={...})"
            )

    def check_finite(self) -> None:
        """Check that all weights are numbers.

        Raises:
            ValueError: one holds NaN or infinite values.
        """
        for name, value in self.state_dict().items():
            if bad := count_not_finite(value):
                raise ValueError(f"{bad} of {value.numel()} values of {name} are NaN or infinite")

    def _sidecars_at_origin(self) -> dict[str, str]:
        """The texts beside the weights where this model was loaded from."""
        origin, revision = self.origin or (None, None)
        if origin is None:
            return {}
        quiet = dict.fromkeys([f"_raise_exceptions_for_{k}" for k in ("missing_entries", "connection_errors")], False)
        files = {name: cached_file(origin, name, revision=revision, **quiet) for name in SIDECARS}
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
        """Upload the model with its card, code files and recipe in one commit; see `upload` for the arguments."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_arguments)
            return upload(HfApi(token=token), folder, repo_id, private, revision, create_pr, commit_message)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill the buffers that are never saved; everything else comes from the checkpoint."""
        for name in ("init_non_persistent_buffers", "_init_buffers"):
            if hasattr(module, name):
                getattr(module, name)()
                return


def count_not_finite(value: Tensor) -> int:
    """How many values of a tensor are NaN or infinite."""
    if value.is_meta or not value.is_floating_point():
        return 0
    wide = value.float() if value.element_size() == 1 else value  # torch cannot test floats of 8 bits
    return int((~wide.isfinite()).sum())


def _remove_unused(folder: Path, config: str) -> None:
    """Remove the code files of architectures that the config does not name, and the lines that import them."""
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
    """Upload a folder in one commit that also deletes the weights and code of an earlier merge.

    Args:
        api: the Hub client, with the access token.
        folder: a temporary folder to upload. Hidden files are left out, and its card gets the name of the repository.
        repo_id: the repository, `user/name`, created if needed.
        private: visibility of a new repository; `None` follows the account's setting.
        revision: the branch to write to, created if needed; by default `main`.
        create_pr: open a pull request instead of writing to the branch.
        commit_message: title of the commit or pull request.

    Returns:
        The commit, with its address and that of the pull request.
    """
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    card = Path(folder, "README.md")
    if card.is_file():
        text = card.read_text(encoding="utf-8")
        card.unlink()  # it may be a link
        card.write_text(text.replace(PLACE, name), encoding="utf-8")
    return api.upload_folder(
        folder_path=folder,
        repo_id=name,
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Merge models with hf-zipit",
        ignore_patterns=[".*"],
        delete_patterns=_REPLACED,
    )
