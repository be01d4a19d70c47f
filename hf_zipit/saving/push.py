"""Upload a merged model to the Hub in one commit. The local folder is only read, so a failed upload can be repeated."""

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

from hf_zipit.errors import OptionError, OutputError, SourceError
from hf_zipit.matching.registry import absent_methods
from hf_zipit.models.pretrained_zipit import ZipItPreTrainedModel, count_not_finite, upload
from hf_zipit.recipe import PinnedSource, read_recipe
from hf_zipit.saving.load import check_merged
from hf_zipit.saving.provenance import Provenance
from hf_zipit.saving.save import save
from hf_zipit.saving.sidecars import RECIPE, without_local_paths
from hf_zipit.sources.access import Access
from hf_zipit.sources.checkpoint import read_json, read_weights, weight_files
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
    """Upload a merged model to the Hub with its card, code files, spec and recipe, in one commit.

    Args:
        model: a merged model, or the folder of a saved one in any format. Local paths of parents and images are not
            uploaded.
        repo: the repository, `user/name`; created if needed. A repository that holds another model is refused.
        private: visibility of a new repository; `None` follows the account's setting.
        revision: the branch to write to, created if needed; by default `main`.
        create_pr: open a pull request against `main` instead of writing to it.
        commit_message: title of the commit or pull request.
        token: an access token with write permission; by default that of `HF_TOKEN` or `hf auth login`.

    Returns:
        The address of the commit or the pull request.

    Raises:
        OptionError: the repository name is invalid, or a pull request is asked for against a branch.
        OutputError: the upload failed; the message says why, where the files are and how to continue. Or a weight is
            not finite.
        SourceError: the folder does not hold a merged model, or is damaged.

    >>> push(merged, "user/merged", private=True)  # doctest: +SKIP
    """
    check_target(repo, revision=revision, create_pr=create_pr, token=token)
    kept = isinstance(model, str | Path)
    folder = _checked_folder(Path(model)) if isinstance(model, str | Path) else _saved_for_upload(model, repo)
    api = client(Access(token=token))
    try:
        with tempfile.TemporaryDirectory() as public:
            _fill_public_folder(folder, Path(public))
            done = upload(api, public, repo, private, revision, create_pr, commit_message or _title(folder))
    except FAULTS as error:
        kept = True  # so that the upload can be repeated
        flags = (f" --revision {revision}" if revision else "") + (" --create-pr" if create_pr else "")
        raise OutputError(
            f"{explain(error, repo, revision, token)}. The merged model is complete in {folder}; upload it, or what "
            f"is missing of it, with: hf-zipit push {folder} {repo}{flags}"
        ) from error
    finally:
        if not kept:
            shutil.rmtree(folder.parent, ignore_errors=True)
    return str(done.pr_url or done.commit_url)


@absent_methods()
def _checked_folder(folder: Path) -> Path:
    """The folder of a saved merge, once it is known that what it holds is complete and readable.

    Raises:
        SourceError: it does not hold a merged model, or its weights are damaged.
        OutputError: a weight is not finite.
        OptionError: the recipe in it cannot be read.
    """
    if not (folder / RECIPE).is_file():  # an ordinary checkpoint is recognised as a merge by its recipe alone
        check_merged(folder)
    else:
        read_recipe(folder / RECIPE)
    for file in weight_files(folder):
        for name, value in read_weights([file]).items():
            if bad := count_not_finite(value):
                raise OutputError(
                    f"{file}: {bad} of {value.numel()} values of {name} are NaN or infinite: not uploaded"
                )
    return folder


def _saved_for_upload(model: ZipItPreTrainedModel, repo: str) -> Path:
    """A temporary folder, in one of its own, with a model from memory.

    Raises:
        OutputError: the model cannot be saved, or there is no place for it.
    """
    try:
        home = Path(tempfile.mkdtemp(prefix="hf-zipit-"))
    except OSError as error:
        raise OutputError(f"cannot save the model for its upload: {error}; set TMPDIR to another folder") from None
    try:
        return save(model, home / repo.rpartition("/")[2])
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def check_target(repo: str, *, revision: str | None = None, create_pr: bool = False, token: str | None = None) -> None:
    """Check that a repository can be written, before any work is done; nothing is created.

    Args:
        repo: as for `push`.
        revision: as for `push`.
        create_pr: as for `push`.
        token: as for `push`.

    Raises:
        OptionError: the repository name is invalid, or a pull request is asked for against a branch.
        OutputError: there is no access token, no connection or no write permission, or the repository holds another
            model.
    """
    if create_pr and revision not in (None, "main"):
        raise OptionError(
            f"{repo}: a pull request goes to main, not to the branch {revision}: leave out create_pr or revision"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OptionError(explain(error, repo)) from None
    if constants.is_offline_mode():
        raise OutputError(f"{repo}: HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    if not (token or get_token()):
        raise OutputError(f"{repo}: uploading needs an access token: {LOG_IN}")
    api = client(Access(token=token))
    try:
        user = api.whoami()
        if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise OutputError(f"{repo}: the access token is read-only; use one with write permission")
        kind = _model_type(api, repo if "/" in repo else f"{user['name']}/{repo}", revision)
    except FAULTS as error:
        raise OutputError(redact(explain(error, repo, revision, token), token)) from error
    if kind not in ("", "zipit", "zipit-model") and not create_pr:
        raise OutputError(
            f"{repo} holds another model ({kind}): choose another name, or open a pull request (create_pr=True, or "
            "--create-pr)"
        )


def _model_type(api: HfApi, name: str, revision: str | None) -> str:
    """The model type of what a repository holds; empty if there is no repository or no config."""
    try:
        file = api.hf_hub_download(name, "config.json", revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
        return ""
    if api.file_exists(name, RECIPE, revision=revision):  # an ordinary checkpoint of a merge
        return "zipit"
    try:
        config = read_json(Path(file))
    except SourceError:
        return "unreadable"
    return str(config.get("model_type") or config.get("architecture") or "unknown")


def _fill_public_folder(folder: Path, public: Path) -> None:
    """Fill `public` with symbolic links to the files of a merge, and with copies of those that hold local paths."""
    for file in folder.iterdir():
        if file.is_file() and not file.name.startswith("."):
            (public / file.name).symlink_to(file.resolve())
    config = read_json(folder / "config.json")
    sources = Provenance.from_dict(config.get("zipit")).sources
    if any("path" in source for source in sources):
        config["zipit"]["sources"] = [{k: v for k, v in source.items() if k != "path"} for source in sources]
        _replace(public / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    if (folder / RECIPE).is_file():
        text = (folder / RECIPE).read_text(encoding="utf-8")
        _replace(public / RECIPE, without_local_paths(text))


def _replace(link: Path, text: str) -> None:
    """Replace a link by a file of its own."""
    link.unlink()
    link.write_text(text, encoding="utf-8")


@absent_methods()
def _title(folder: Path) -> str:
    """The commit message: which models were merged."""
    sources = Provenance.from_dict(read_json(folder / "config.json").get("zipit")).sources
    if not sources and (folder / RECIPE).is_file():  # an ordinary checkpoint
        pinned = [source for source in read_recipe(folder / RECIPE).sources if isinstance(source, PinnedSource)]
        sources = [source.model_dump() for source in pinned]
    names = [source.get("id") or source.get("folder") or "a model in memory" for source in sources]
    return f"Merge {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "Merge models"
