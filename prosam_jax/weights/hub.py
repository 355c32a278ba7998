"""Uploads to and downloads from a Hugging Face hub.

A repository of a trained prompt encoder contains its file and a model card. This module needs the
package `huggingface_hub`, which the extra `hub` installs. The environment variable HF_ENDPOINT sets
the hub, https://huggingface.co by default.
"""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from prosam_jax import console
from prosam_jax.errors import UserError, cut
from prosam_jax.weights.registry import sha256

FILE = "prompt_encoder.safetensors"
LOG_IN = "log in with: hf auth login"
TIMEOUT = 30.0  # seconds for the first answer; the client itself would wait for ever


def upload(
    path: pathlib.Path, repo: str, *, card: str, private: bool, endpoint: str | None = None
) -> str:
    """Uploads a file as `FILE`, and a model card if there is none yet.

    Args:
        path: The file.
        repo: "user/name"; the repository is created if it is missing.
        card: Text of the model card.
        private: Whether to make the repository private.
        endpoint: Address of the hub; None for the default.

    Returns:
        The address of the commit.

    Raises:
        UserError: `huggingface_hub` is not installed, nobody is logged in, or the hub cannot be
            reached or refuses.
    """
    hub, api = _client(endpoint)
    if hub.get_token() is None:
        raise UserError(f"not logged in to {api.endpoint}; {LOG_IN}, or set HF_TOKEN")
    with _one_line(hub, api.endpoint, repo, "main", FILE):
        console.note(f"uploading {path} to {repo} at {api.endpoint}")
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise UserError(
                f"{repo} exists and is public; push to another name, or make it private"
            )
        files = [hub.CommitOperationAdd(FILE, path)]
        if not api.file_exists(repo, "README.md"):  # the owner may have edited an older one
            files.append(hub.CommitOperationAdd("README.md", card.encode()))
        commit = api.create_commit(repo, files, commit_message="Trained prompt encoder")
    return commit.commit_url


def download(
    repo: str, file: str = FILE, *, revision: str | None = None, endpoint: str | None = None
) -> pathlib.Path:
    """Downloads a file from a repository to the hub client's cache and returns its path.

    A file in the cache that is damaged is downloaded again, which the client does not do by itself.
    Where HF_HUB_OFFLINE is set, the cache must have it.

    Args:
        repo: "user/name".
        file: The file's name in the repository.
        revision: Branch, tag or commit; None for the newest.
        endpoint: Address of the hub; None for the default.

    Raises:
        UserError: `huggingface_hub` is not installed, or the hub cannot be reached or has no such
            repository, revision or file, or gives another file than it says, or the cache cannot
            be written to.
    """
    hub, api = _client(endpoint)
    with _one_line(hub, api.endpoint, repo, revision or "main", file):
        if hub.constants.HF_HUB_OFFLINE:
            return _cached(hub, repo, file, revision)
        # Ask first, because a download retries an unreachable hub for half a minute.
        api.model_info(repo, revision=revision, timeout=TIMEOUT)
        for again in (False, True):
            found = api.hf_hub_download(repo, file, revision=revision, force_download=again)
            if _is_whole(found):
                return pathlib.Path(found)
        raise UserError(f"{repo} at {api.endpoint} gave {file} with another sha256 than it says")


def _cached(hub: Any, repo: str, file: str, revision: str | None) -> pathlib.Path:
    cache = hub.constants.HF_HUB_CACHE
    found = hub.try_to_load_from_cache(repo, file, cache_dir=cache, revision=revision)
    mend = "unset it to fetch the file, or copy that folder from a machine that has the file"
    if not isinstance(found, str):
        raise UserError(f"HF_HUB_OFFLINE is set, but {cache} has no {file} of {repo}: {mend}")
    if not _is_whole(found):
        raise UserError(f"HF_HUB_OFFLINE is set, but {found} is damaged: {mend}")
    return pathlib.Path(found)


def _is_whole(file: str) -> bool:
    """The client calls what a link stands for by the file's SHA-256, if the hub tells it."""
    path = pathlib.Path(file).resolve()
    return not re.fullmatch("[0-9a-f]{64}", path.name) or path.name == sha256(path)


def _client(endpoint: str | None) -> tuple[Any, Any]:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise UserError(
            "huggingface_hub is not installed; install it with: pip install 'prosam_jax[hub]'"
        ) from error
    return huggingface_hub, huggingface_hub.HfApi(endpoint=endpoint)


@contextlib.contextmanager
def _one_line(hub: Any, endpoint: str, repo: str, revision: str, file: str) -> Iterator[None]:
    """Turns the client's errors into one-line UserErrors that say what to do."""
    errors = hub.errors
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(
            f"{repo} is no repository's name, which is USER/NAME: {_reason(error)}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{repo} at {endpoint} has no revision {revision!r}: pass a branch, tag or commit"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        pushed = ": push a prompt encoder there first" if file == FILE else ""
        raise UserError(f"{repo} at {endpoint} has no file {file}{pushed}") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            reason = f"refuses access to {repo}: check the name, or {LOG_IN}"
        elif status == 404:
            reason = f"has no repository {repo} that you may see: check the name, or {LOG_IN}"
        elif status == 429 or status >= 500:
            reason = f"answered {status} for {repo}: try again later"
        else:
            reason = f"refuses {repo} ({status}): {_reason(error)}"
        raise UserError(f"{endpoint} {reason}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        raise UserError(
            f"cannot reach {endpoint}, check the connection: {_reason(error)}"
        ) from error
    except UserError:
        raise
    except Exception as error:  # the client raises anything on what is no hub's answer
        if isinstance(error, OSError) and error.errno:
            raise UserError(
                f"{error}: files of a hub are kept in {hub.constants.HF_HUB_CACHE}; make room "
                "there, or set HF_HOME to another folder"
            ) from error
        raise UserError(
            f"{endpoint} answers for {repo} with something else than a hub does "
            f"({type(error).__name__}: {_reason(error)}): check the connection, or HF_ENDPOINT"
        ) from error


def _reason(error: Exception) -> str:
    return cut(" ".join(str(error).split()))
