"""Trained prompt encoders on a Hugging Face hub: one file and a model card per repository.

Needs the package `huggingface_hub`, which the extra `hub` installs. The hub is that of the
environment variable HF_ENDPOINT, https://huggingface.co if there is none.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from prosam_jax.atomic import replacing
from prosam_jax.prompt import weight_file
from prosam_jax.prompt.weight_file import Trained

FILE = "prompt_encoder.safetensors"
LOG_IN = "log in with: hf auth login"


def push(
    path: pathlib.Path, repo: str, *, private: bool = False, endpoint: str | None = None
) -> str:
    """Uploads a trained prompt encoder, and a model card where there is none yet.

    Args:
        path: The file.
        repo: "user/name"; the repository is made if it is missing.
        private: Makes it private.
        endpoint: Address of another hub.

    Returns:
        The address of the commit.

    Raises:
        ValueError: The file is none of a prompt encoder, `huggingface_hub` is missing, nobody is
            logged in, the hub cannot be reached or refuses; one line each.
    """
    hub, api = _client(endpoint)
    trained = verified(path)
    if hub.get_token() is None:
        raise ValueError(f"not logged in to {api.endpoint}; {LOG_IN}, or set HF_TOKEN")
    with _one_line(hub, api.endpoint, repo, "main"):
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise ValueError(
                f"{repo} exists and is public; push to another name, or make it private"
            )
        files = [hub.CommitOperationAdd(FILE, path)]
        if not api.file_exists(repo, "README.md"):  # an older one may have its owner's words
            files.append(hub.CommitOperationAdd("README.md", card(trained, repo).encode()))
        commit = api.create_commit(repo, files, commit_message="Trained prompt encoder")
    return commit.commit_url


def pull(
    repo: str, out: pathlib.Path, *, revision: str | None = None, endpoint: str | None = None
) -> Trained:
    """Downloads a trained prompt encoder to `out`, which appears when it is found to be one.

    Args:
        repo: "user/name".
        out: The file; an older one is replaced.
        revision: Branch, tag or commit; None for the newest.
        endpoint: Address of another hub.

    Raises:
        ValueError: `huggingface_hub` is missing, the hub cannot be reached or has no such
            repository, revision or file, or the file is none of a prompt encoder; one line each.
    """
    hub, api = _client(endpoint)
    with _one_line(hub, api.endpoint, repo, revision or "main"):
        # Asked for first, because the download would retry an unreachable hub for half a minute.
        commit = api.model_info(repo, revision=revision).sha
        cached = pathlib.Path(api.hf_hub_download(repo, FILE, revision=commit))
    try:
        trained = verified(cached)
    except ValueError as error:
        raise ValueError(f"{repo} holds no prompt encoder for this library: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part:
        shutil.copyfile(cached, part)
    return trained


def verified(path: pathlib.Path) -> Trained:
    """What a file says of its prompt encoder; ValueError unless its arrays are those it needs."""
    trained = weight_file.read(path)
    weight_file.load(path, trained.config, trained.merged_channels)
    return trained


def card(trained: Trained, repo: str) -> str:
    """The model card: what the file says and how it is used."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in weight_file.facts(trained).items())
    flags = " --config.data.fold=FOLD" if trained.fold is None else ""
    roots = {"pascal": "VOC2012", "coco": "COCO2014"}
    if root := roots.get(trained.config.data.name):
        flags += f" --config.data.root={root}"
    return f"""---
library_name: prosam_jax
pipeline_tag: image-segmentation
tags:
- visual-reference-segmentation
- segment-anything
---

# {repo.rpartition("/")[2]}

A prompt encoder for visual reference segmentation: given a picture with an object marked, it
prompts a frozen Segment Anything model to segment the same kind of object in other pictures
(ProSAM, arXiv 2506.21835). The frozen networks are not in this repository.

| | |
|---|---|
{rows}

```
python -m prosam_jax.prompt_file pull {repo} --out FILE.safetensors
python evaluate.py --prompt_encoder=FILE.safetensors --workdir=DIR{flags}
```
"""


def _client(endpoint: str | None) -> tuple[Any, Any]:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ValueError(
            "the package huggingface_hub is missing; install it with: pip install 'prosam_jax[hub]'"
        ) from error
    return huggingface_hub, huggingface_hub.HfApi(endpoint=endpoint)


@contextlib.contextmanager
def _one_line(hub: Any, endpoint: str, repo: str, revision: str) -> Iterator[None]:
    """Turns the client's errors into ValueErrors of one line that say what to do."""
    errors = hub.errors
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo} at {endpoint} has no revision {revision!r}") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ValueError(
            f"{repo} at {endpoint} has no file {FILE}: no prompt encoder was pushed there"
        ) from error
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
        raise ValueError(f"{endpoint} {reason}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"cannot reach {endpoint}: {reason}") from error
