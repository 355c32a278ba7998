"""Shares trained prompt encoders: exports them from runs, and pushes to and pulls from a hub."""

import pathlib
import re
import shutil
from typing import Any

from flax import nnx

import prosam_jax
from prosam_jax import backbone, model
from prosam_jax.atomic import replacing
from prosam_jax.config import (
    CHANGES_NO_NUMBER,
    OF_AN_EVALUATION,
    Config,
    changed,
    read_config,
    recorded,
    replaced,
    without_paths,
)
from prosam_jax.errors import UserError
from prosam_jax.json_files import read_object
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.weights import files, hub, prompt_encoder
from prosam_jax.weights.checkpoint import Checkpoints
from prosam_jax.weights.prompt_encoder import Trained


def export(workdir: pathlib.Path, checkpoint: str, out: pathlib.Path) -> Trained:
    """Writes the prompt encoder of a run's checkpoint to the file `out`.

    The file includes the scores of `results.json` if they belong to this checkpoint. It does not
    include paths, because they mean nothing on another machine.

    Args:
        workdir: Folder of the run.
        checkpoint: "best", "latest" or a step.
        out: The `.safetensors` file; an older one is replaced.

    Returns:
        What the file says.

    Raises:
        UserError: There is no such run or checkpoint, or a file of the run is missing or damaged.
    """
    cfg = read_config(workdir / "config.json")

    def build(rngs: nnx.Rngs) -> Any:
        return backbone.build(cfg.backbone, rngs=rngs)

    channels = files.abstract(build).merged_channels
    encoder = ReferencePromptEncoder(cfg.prompt, cfg.distribution, channels, rngs=nnx.Rngs(0))
    learned = nnx.Dict(prompt_encoder=encoder)
    checkpoints = Checkpoints(workdir)
    at, params = checkpoints.restore_params(checkpoint, nnx.state(learned))
    nnx.update(learned, params)
    dataset = prompt_encoder.read_dataset(workdir)
    trained = Trained(
        config=without_paths(cfg),
        merged_channels=channels,
        frozen=prompt_encoder.read_frozen(workdir),
        version=prosam_jax.__version__,
        benchmark=cfg.data.name,
        classes=dataset.classes if dataset else None,
        fold=cfg.data.fold,
        step=at,
        results=_results(workdir / "results.json", cfg, at),
    )
    prompt_encoder.save(out, files.leaves(encoder), trained)
    return trained


def _results(path: pathlib.Path, run: Config, at: int) -> dict[str, Any] | None:
    """The scores in `results.json`, or None if they belong to other parameters."""
    if not path.is_file():
        return None
    run = replaced(run, {"prompt.weights": ""})  # as `score` writes it for a checkpoint
    mend = "run prosam evaluate again"
    held = read_object(path, ("config", "step", *prompt_encoder.SCORES), mend)
    try:
        scored = recorded(held["config"])
    except UserError as error:
        raise UserError(f"{path} is damaged ({error}); {mend}") from error
    if held["step"] != at or changed(run, scored, OF_AN_EVALUATION):
        return None
    scores = {name: held[name] for name in prompt_encoder.SCORES}
    found = scores | {"settings": changed(run, scored, CHANGES_NO_NUMBER)}
    if not prompt_encoder.CHECKS["results"](found):
        raise UserError(f"{path} is damaged (its scores are no percentages); {mend}")
    return found


def push(
    path: pathlib.Path, repo: str, *, private: bool = False, endpoint: str | None = None
) -> str:
    """Uploads a trained prompt encoder, and a model card if there is none yet.

    Args:
        path: The file.
        repo: "user/name"; the repository is created if it is missing.
        private: Whether to make the repository private.
        endpoint: Address of the hub; None for the default.

    Returns:
        The address of the commit.

    Raises:
        UserError: The file is not a trained prompt encoder, or as for `weights.hub.upload`.
    """
    trained = verified(path)
    return hub.upload(path, repo, card=card(trained, repo), private=private, endpoint=endpoint)


def pull(
    repo: str, out: pathlib.Path, *, revision: str | None = None, endpoint: str | None = None
) -> Trained:
    """Downloads a prompt encoder to `out`, which appears when it has been verified.

    Args:
        repo: "user/name".
        out: The file; an older one is replaced.
        revision: Branch, tag or commit; None for the newest.
        endpoint: Address of the hub; None for the default.

    Returns:
        What the file says.

    Raises:
        UserError: The file is not a trained prompt encoder, or as for `weights.hub.download`.
    """
    cached = hub.download(repo, revision=revision, endpoint=endpoint)
    try:
        trained = verified(cached)
    except UserError as error:
        raise UserError(f"{repo} has no prompt encoder that can be used: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part:
        shutil.copyfile(cached, part)
    return trained


def verified(path: pathlib.Path) -> Trained:
    """What a file says; raises UserError unless it contains exactly a prompt encoder's arrays."""
    trained = prompt_encoder.read(path)
    model.load_prompt_encoder(path, trained.config, trained.merged_channels)
    return trained


def card(trained: Trained, repo: str) -> str:
    """The model card: what the file says and how to use it."""
    rows = "\n".join(
        f"| {name} | {_in_a_cell(value)} |" for name, value in prompt_encoder.facts(trained).items()
    )
    flags = " --config.data.fold=FOLD" if trained.fold is None else ""
    roots = {"pascal": "VOC2012", "coco": "COCO2014", "fss": "FSS-1000"}
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

A prompt encoder for visual reference segmentation: given a picture with an annotated object, it
prompts a frozen Segment Anything model to segment the same kind of object in other pictures
(ProSAM, arXiv 2506.21835). The frozen networks are not in this repository.

| | |
|---|---|
{rows}

```
prosam weights pull {repo} --out FILE.safetensors
prosam evaluate --prompt-encoder FILE.safetensors --workdir DIR{flags}
```
"""


def _in_a_cell(text: str) -> str:
    """A text as a cell of a Markdown table shows it: neither the end of the cell nor HTML."""
    return re.sub(r"([\\`|\[<])", r"\\\1", text)


def describe(path: pathlib.Path, trained: Trained) -> str:
    """What a file says, as lines of text."""
    rows = {"file": f"{path}, {path.stat().st_size:,} bytes"} | prompt_encoder.facts(trained)
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())
