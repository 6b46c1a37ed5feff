"""The hub base: a model and a data set of stories, downloaded once from a Hugging Face hub.

Every file comes from one resolved commit and is checked, byte for byte, against the hash that the hub names for it.
No code is ever fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rewardgrid.base.corpus import Stories, read_stories
from rewardgrid.base.model_files import KEPT, check_model, weight_names
from rewardgrid.study.bases import HubBase
from rewardgrid.study.errors import UserError, did_you_mean
from rewardgrid.study.files import sha256

Kind = Literal["model", "dataset"]

COMMIT = re.compile(r"[0-9a-f]{40}")


def fetch_hub(recipe: HubBase, directory: Path) -> Stories:
    """Download the model, and of the data set as many parquet files as the prompts need.

    Files lie in the ordinary hub cache, so that a second build does not download them again. A split is read in the
    order of its file names, and only as far as the prompts reach.

    Raises:
        UserError: no network, no such repository or revision, a truncated or altered file, no sound model
            with safetensors weights, no such split or column.
    """
    model = Repository.resolve("model", recipe.model, recipe.model_revision)
    dataset = Repository.resolve("dataset", recipe.dataset, recipe.dataset_revision)
    facts: dict[str, Any] = {"source": {"model": model.facts, "dataset": dataset.facts}, "license": model.licence}
    splits = {split: dataset.parquet(split) for split in (recipe.train_split, recipe.eval_split)}
    fetch_model(model, directory)

    def stories(split: str) -> Iterator[str]:
        for name in splits[split]:
            yield from read_stories(dataset.fetch(name), recipe.story_column)

    return Stories(stories(recipe.train_split), stories(recipe.eval_split), facts)


def fetch_model(model: Repository, directory: Path) -> None:
    """Download a model and its tokenizer into a directory.

    Raises:
        UserError: a truncated or altered file, or no sound model with safetensors weights.
    """
    if not any("/" not in name and name.endswith(".safetensors") for name in model.files):
        raise UserError(
            f"model {model.name}: has no safetensors weights at {model.commit[:10]} (it has: "
            f"{', '.join(sorted(model.files)) or 'no files'}), and pickles, which can run code, are not opened; "
            "choose a revision or a model with model.safetensors"
        )

    def fetch(names: Iterable[str]) -> None:
        for name in names:
            shutil.copyfile(model.fetch(name), directory / name)

    fetch(name for name in model.files if "/" not in name and name.endswith(KEPT))
    try:
        fetch(weight_names(directory, model.files))
        check_model(directory)
    except UserError as error:
        # The directory is about to go, so the message names the repository.
        raise UserError(str(error).replace(str(directory), f"model {model.name} at {model.commit[:10]}")) from None


def check_repository(name: str) -> None:
    """Refuse what is no repository's name, before anything is made for it.

    Raises:
        UserError: it is not OWNER/NAME, or the hub's library is not installed.
    """
    _settle_library()
    from huggingface_hub import errors
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1:
            raise errors.HFValidationError("it names no owner")
    except errors.HFValidationError as error:
        raise UserError(f"--push: read {name!r}, no valid repository name ({error}); write owner/name") from None


def upload(directory: Path, repository: str, force: bool) -> None:
    """Upload a directory to a model repository, which is made if there is none.

    Raises:
        UserError: there is one already and it is not to be replaced (``force``); nobody is logged in who may write; the
            hub cannot be reached.
    """
    _settle_library()
    from huggingface_hub import HfApi, errors

    hub = HfApi(endpoint=_endpoint())
    with _explained("model", repository, "main", sending=True):
        try:
            hub.create_repo(repository, exist_ok=force)
        except errors.HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            raise UserError(
                f"model {repository}: exists already at {_endpoint()}; name another, or give --force to write over it"
            ) from None
        hub.upload_folder(repo_id=repository, folder_path=directory, commit_message="Upload of rewardgrid export")


def _settle_library() -> None:
    """Download over plain HTTP, whose bytes and failures are the same at every hub, and report in one voice.

    Raises:
        UserError: the library is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # read when the library is first imported
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        from huggingface_hub.utils import logging
    except ImportError:
        raise UserError('kind: read "hub", which needs huggingface_hub; run: pip install "rewardgrid[hub]"') from None
    logging.set_verbosity_error()  # its warnings tell of the retries whose outcome we report


@dataclass(frozen=True)
class Repository:
    """A repository at one commit.

    Attributes:
        files: what the hub says of each file (size, git or LFS hash).
        licence: what its card names.
        facts: for the provenance; names each file that was fetched, with its SHA-256.
    """

    kind: Kind
    name: str
    commit: str
    files: dict[str, Any]
    facts: dict[str, Any]
    licence: str | None = None

    @classmethod
    def resolve(cls, kind: Kind, name: str, revision: str) -> Repository:
        """Ask the hub which commit a revision is, and what it holds.

        Raises:
            UserError: its library is missing, it cannot be reached, or knows no such repository or revision.
        """
        _settle_library()
        from huggingface_hub import HfApi

        with _explained(kind, name, revision):
            info: Any = HfApi(endpoint=_endpoint()).repo_info(
                name, repo_type=kind, revision=revision, files_metadata=True
            )
        if not COMMIT.fullmatch(str(info.sha)):
            raise UserError(f"{kind} {name}: {_endpoint()} named no commit, so it is no hub; check HF_ENDPOINT")
        facts: dict[str, Any] = {"repository": name, "revision": revision, "commit": info.sha, "files": {}}
        licence = (getattr(info, "card_data", None) or {}).get("license")
        return cls(kind, name, str(info.sha), {file.rfilename: file for file in info.siblings or []}, facts, licence)

    def parquet(self, split: str) -> list[str]:
        """The parquet files of a split, in order: ``<split>.parquet``, ``<split>-*.parquet``, ``<split>/*.parquet``.

        Raises:
            UserError: there are none, or several folders have some (configurations of the data set).
        """
        tables = sorted(name for name in self.files if name.endswith(".parquet"))
        of_split = re.compile(rf"(.*/)?{re.escape(split)}(-[^/]*|/[^/]+)?\.parquet")
        found = {name: match[1] or "" for name in tables if (match := of_split.fullmatch(name))}
        if not found:
            words = {word for name in tables for word in re.split(r"[^a-zA-Z0-9]+", name)}
            raise UserError(
                f"dataset {self.name}: has no parquet file of the split {split!r};{did_you_mean(split, words)} it has: "
                f"{', '.join(tables) or 'no parquet file at all (try dataset_revision: refs/convert/parquet)'}"
            )
        if len(folders := sorted(set(found.values()))) > 1:
            raise UserError(
                f"dataset {self.name}: the split {split!r} has files in several folders; write one of "
                f"{', '.join(repr(folder + split) for folder in folders)}"
            )
        return list(found)

    def fetch(self, name: str) -> Path:
        """The path of a file in the cache, downloaded if need be, its bytes checked.

        Raises:
            UserError: it could not be downloaded, or is not what the hub says it is.
        """
        from huggingface_hub import hf_hub_download

        with _explained(self.kind, self.name, self.commit, name):
            path = Path(
                hf_hub_download(self.name, name, repo_type=self.kind, revision=self.commit, endpoint=_endpoint())
            )
        told = self.files[name]
        digest = sha256(path)
        sound = path.stat().st_size == told.size if told.size is not None else True
        if told.lfs is not None:
            sound = sound and digest == told.lfs.sha256
        elif told.blob_id is not None:
            sound = sound and _git_hash(path) == told.blob_id
        if not sound:
            blob = path.resolve()
            path.unlink(missing_ok=True)
            blob.unlink(missing_ok=True)
            raise UserError(
                f"{self.kind} {self.name}: {name}: truncated or altered on the way (not the size and hash that the "
                "hub names); it has been removed from the cache: run again"
            )
        self.facts["files"][name] = digest
        return path


def _endpoint() -> str:
    """The address of the hub: HF_ENDPOINT, or else the library's own."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def _git_hash(path: Path) -> str:
    """The name that git gives to a file's content."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@contextmanager
def _explained(kind: Kind, name: str, revision: str, file: str | None = None, sending: bool = False) -> Iterator[None]:
    """Turn what the hub's library raises into one message that says what to do."""
    from huggingface_hub import errors

    # The httpx that this version of the library uses.
    transport_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]

    what = f"{kind} {name}" + (f": {file}" if file else "")
    hub = _endpoint()
    try:
        yield
    except errors.OfflineModeIsEnabled:
        other = "export without --push" if sending else "choose a model that lies on this machine"
        raise UserError(f"{what}: HF_HUB_OFFLINE forbids it; unset it for this one job, or {other}") from None
    except errors.RevisionNotFoundError:
        key = f"{kind}_revision"
        raise UserError(
            f"{what}: {key}: read {revision!r}, but there is no such revision; write a branch, tag or commit of it"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{what}: no such repository at {hub}, or it is private; check the name, or log in with `hf auth login`"
        ) from None
    except errors.HFValidationError as error:
        raise UserError(f"{what}: no valid repository name ({error}); write owner/name") from None
    except errors.EntryNotFoundError as error:
        # The library says so too when it cannot connect and the file is not in the cache.
        offline = isinstance(error, errors.LocalEntryNotFoundError)
        raise UserError(_unreachable(what, hub, sending) if offline else f"{what}: no such file") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        fix = "log in as who may do it with `hf auth login`" if status in (401, 403) else "try again later"
        raise UserError(f"{what}: {hub} answered {status}; {fix}") from None
    except transport_error as error:
        unreachable = file is None or type(error).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError")
        cut = f"{what}: the download was cut short ({error}); run again"
        raise UserError(_unreachable(what, hub, sending) if unreachable else cut) from None
    except json.JSONDecodeError:
        raise UserError(f"{what}: {hub} did not answer as a hub does; check HF_ENDPOINT and the proxy") from None
    except OSError as error:
        sent = "upload" if sending else "download"
        raise UserError(f"{what}: the {sent} failed ({str(error).partition(chr(10))[0]}); run again") from None


def _unreachable(what: str, hub: str, sending: bool) -> str:
    other = "or push what was exported later (--force)" if sending else "or choose a model that lies on this machine"
    return (
        f"{what}: cannot reach {hub}; check the network and run again, set HF_ENDPOINT to a hub that can be reached, "
        f"{other}"
    )
