"""Uploads to and downloads from a Hugging Face hub.

A repository of a trained prompt encoder contains its file and a model card. This module needs the
package `huggingface_hub`, which the extra `hub` installs. The environment variable HF_ENDPOINT sets
the hub, https://huggingface.co by default.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from prosam_jax.errors import UserError

FILE = "prompt_encoder.safetensors"
LOG_IN = "log in with: hf auth login"


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

    Args:
        repo: "user/name".
        file: The file's name in the repository.
        revision: Branch, tag or commit; None for the newest.
        endpoint: Address of the hub; None for the default.

    Raises:
        UserError: `huggingface_hub` is not installed, or the hub cannot be reached or has no such
            repository, revision or file.
    """
    hub, api = _client(endpoint)
    with _one_line(hub, api.endpoint, repo, revision or "main", file):
        # Ask for the commit first, because a download retries an unreachable hub for half a minute.
        commit = api.model_info(repo, revision=revision).sha
        return pathlib.Path(api.hf_hub_download(repo, file, revision=commit))


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
        reason = " ".join(str(error).split())
        raise UserError(f"{repo} is no repository's name, which is USER/NAME: {reason}") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{endpoint} answers for {repo} with something else than a hub does: check the "
            "connection, or HF_ENDPOINT"
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
            reason = f"refuses {repo} ({status}): {' '.join(str(error).split())}"
        raise UserError(f"{endpoint} {reason}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"cannot reach {endpoint}, check the connection: {reason}") from error
