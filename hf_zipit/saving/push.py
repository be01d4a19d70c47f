"""Sending a merged model to the Hub: one upload of a folder that stays as it is, whatever happens on the way."""

import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from hf_zipit.errors import OptionError, OutputError
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel, upload
from hf_zipit.recipe import PinnedSource, read_recipe
from hf_zipit.saving import load as loading
from hf_zipit.saving import save as saving
from hf_zipit.saving.sidecars import RECIPE, without_places
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import read_json
from hf_zipit.sources.download import client
from hf_zipit.sources.faults import FAULTS, LOG_IN, explain, redact


def push(
    model: ZipItPreTrainedModel | str | Path,
    repo: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a merged model to `user/name`, with its card, code files, spec and recipe, in one go.

    Args:
        model: a merged model, or the folder of a saved one, in our own format or a library's; the folder is only
            read, and where local parents and images lie is not uploaded.
        repo: the repository; it is made if there is none. One that holds another model than a merge is refused.
        private: whether a new repository is private; `None` follows the account's settings.
        revision: the branch to write to, made if there is none; `main` by default.
        create_pr: open a pull request against `main` instead of writing to it.
        commit_message: the title of the commit or pull request.
        token: an access token with the right to write; by default that of `HF_TOKEN` or `hf auth login`.

    Returns:
        The address of the commit or the pull request.

    Raises:
        OutputError: the upload failed; the message says why, where the files are and how to go on.
        SourceError: the folder holds no merged model.

    >>> push(merged, "user/merged", private=True)  # doctest: +SKIP
    """
    check_target(repo, revision=revision, create_pr=create_pr, token=token)
    if isinstance(model, str | Path):
        folder, temporary = Path(model), None
        if not (folder / RECIPE).is_file():  # a merge in a library's own format has nothing else to know it by
            loading.check_merged(folder)
    else:
        temporary = Path(tempfile.mkdtemp(prefix="hf-zipit-"))
        folder = saving.save(model, temporary / repo.rpartition("/")[2])
    api = client(Access(token=token))
    try:
        with tempfile.TemporaryDirectory() as public:
            _without_places(folder, Path(public))
            done = upload(api, public, repo, private, revision, create_pr, commit_message or _title(folder))
    except FAULTS as error:
        flags = (f" --revision {revision}" if revision else "") + (" --create-pr" if create_pr else "")
        raise OutputError(
            f"{explain(error, repo, revision, token)}. The merged model is complete in {folder}; upload it, or what "
            f"is missing of it, with: hf-zipit push {folder} {repo}{flags}"
        ) from error
    if temporary:
        shutil.rmtree(temporary)
    return str(done.pr_url or done.commit_url)


def check_target(repo: str, *, revision: str | None = None, create_pr: bool = False, token: str | None = None) -> None:
    """Refuse a repository that cannot be written, before any work is done; nothing is created.

    Raises:
        OptionError: it is no name of a repository, or a pull request to a branch.
        OutputError: no access token, no connection, a read-only token, or another model is there.
    """
    if create_pr and revision not in (None, "main"):
        raise OptionError(f"{repo}: a pull request goes to main, not to the branch {revision}")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OptionError(explain(error, repo)) from None
    if constants.is_offline_mode():
        raise OutputError(f"{repo}: HF_HUB_OFFLINE is set, nothing can be uploaded")
    if not (token or get_token()):
        raise OutputError(f"{repo}: uploading needs an access token: {LOG_IN}")
    api = client(Access(token=token))
    try:
        user = api.whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise OutputError(f"{repo}: the access token may only read: use one with the right to write")
        kind = _model_type(api, repo if "/" in repo else f"{user['name']}/{repo}", revision)
    except FAULTS as error:
        raise OutputError(redact(explain(error, repo, revision, token), token)) from error
    if kind not in ("", "zipit", "zipit-model") and not create_pr:
        raise OutputError(f"{repo} holds another model ({kind}): choose another name, or open a pull request to it")


def _model_type(api: HfApi, name: str, revision: str | None) -> str:
    """What the repository holds: the config's model type; empty where there is no repository or no config."""
    try:
        file = api.hf_hub_download(name, "config.json", revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
        return ""
    if api.file_exists(name, RECIPE, revision=revision):
        return "zipit"
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    return str(config.get("model_type") or config.get("architecture") or "unknown")


def _without_places(folder: Path, public: Path) -> None:
    """The files of a merge by symbolic link, but those that tell where parents and images lie on this machine."""
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith("."):
            (public / file.name).symlink_to(file.resolve())
    config = read_json(folder / "config.json")
    sources = (config.get("zipit") or {}).get("sources", [])
    if any("path" in source for source in sources):
        config["zipit"]["sources"] = [{k: v for k, v in source.items() if k != "path"} for source in sources]
        _replace(public / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    if (folder / RECIPE).is_file():
        text = (folder / RECIPE).read_text(encoding="utf-8")
        _replace(public / RECIPE, without_places(text))


def _replace(link: Path, text: str) -> None:
    link.unlink()
    link.write_text(text, encoding="utf-8")


def _title(folder: Path) -> str:
    sources = (read_json(folder / "config.json").get("zipit") or {}).get("sources", [])
    if not sources and (folder / RECIPE).is_file():  # an ordinary checkpoint
        pinned = [s for s in read_recipe(folder / RECIPE).sources if isinstance(s, PinnedSource)]
        sources = [source.model_dump() for source in pinned]
    names = [source.get("id") or source.get("folder") or "a model in memory" for source in sources]
    return f"Merge {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "Merge models"
