"""Trained prompt encoders as single files: export from a run, show, share on a hub.

    python -m prosam_jax.prompt_file export --workdir=runs/x --out=FILE [--checkpoint best]
    python -m prosam_jax.prompt_file show FILE
    python -m prosam_jax.prompt_file push FILE --repo USER/NAME [--private]
    python -m prosam_jax.prompt_file pull USER/NAME --out=FILE [--revision REVISION]

Training begins from such a file with `--config.prompt.weights=FILE`, and
`evaluate.py --prompt_encoder=FILE` scores it.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from absl import logging
from flax import nnx

import prosam_jax
from prosam_jax import backbone, model, runs
from prosam_jax.atomic import replacing
from prosam_jax.config import PACKAGED, RANDOM, Config, changed, read_config, replaced
from prosam_jax.errors import UserError
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.weights import files, hub, prompt_encoder
from prosam_jax.weights.checkpoint import Checkpoints
from prosam_jax.weights.prompt_encoder import Trained

# Settings of an evaluation that say nothing about its result.
SILENT = (
    "cache.dir",
    "data.root",
    "data.test_root",
    "data.workers",
    "eval.batch_size",
    "eval.controls",
    "eval.pictures",
)


def export(workdir: pathlib.Path, checkpoint: str, out: pathlib.Path) -> Trained:
    """Writes the prompt encoder of a run's checkpoint to the file `out`.

    The scores of `results.json` come along if they are those of this checkpoint. Paths of this
    machine do not: they mean nothing elsewhere, and files are made to be shared.

    Args:
        workdir: Folder of the run.
        checkpoint: "best", "latest" or a step.
        out: The `.safetensors` file.

    Raises:
        ValueError: There is no such run or checkpoint.
    """
    cfg = read_config(workdir / "config.json")

    def build(rngs: nnx.Rngs) -> Any:
        return backbone.build(cfg.backbone, rngs=rngs)

    channels = files.abstract(build).merged_channels
    encoder = ReferencePromptEncoder(cfg.prompt, cfg.distribution, channels, rngs=nnx.Rngs(0))
    learned = nnx.Dict(prompt_encoder=encoder)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        at = runs.find_step(checkpoints, checkpoint, workdir)
        nnx.update(learned, runs.restore_params(checkpoints, at, cfg, nnx.state(learned)))
    trained = Trained(
        config=_without_paths(cfg),
        merged_channels=channels,
        frozen=prompt_encoder.read_frozen(workdir),
        version=prosam_jax.__version__,
        benchmark=cfg.data.name,
        fold=cfg.data.fold,
        step=at,
        results=_results(workdir / "results.json", cfg, at),
    )
    prompt_encoder.save(out, files.leaves(encoder), trained)
    return trained


def _without_paths(cfg: Config) -> Config:
    default = Config()
    paths = {"cache.dir": "", "data.root": "", "data.test_root": "", "prompt.weights": ""}
    if cfg.sam.weights not in (RANDOM, PACKAGED):
        paths["sam.weights"] = default.sam.weights
    if cfg.backbone.weights not in (RANDOM, PACKAGED):
        paths["backbone.weights"] = default.backbone.weights
    return replaced(cfg, paths)


def _results(path: pathlib.Path, run: Config, at: int) -> dict[str, Any] | None:
    """The scores in `results.json`, or None if they belong to other parameters."""
    if not path.is_file():
        return None
    run = replaced(run, {"prompt.weights": ""})  # as `score` writes it for a checkpoint
    try:
        held = json.loads(path.read_text())
        scored = Config.from_dict(held["config"])
        if held["step"] != at or changed(run, scored, runs.FREE):
            return None
        return {name: held[name] for name in prompt_encoder.SCORES} | {
            "settings": changed(run, scored, SILENT)
        }
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); run evaluate.py again") from error


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
        UserError: The file is none of a prompt encoder, or as `weights.hub.upload`.
    """
    trained = verified(path)
    return hub.upload(path, repo, card=card(trained, repo), private=private, endpoint=endpoint)


def pull(
    repo: str, out: pathlib.Path, *, revision: str | None = None, endpoint: str | None = None
) -> Trained:
    """Downloads a prompt encoder to `out`, which appears when it is found to be one.

    Args:
        repo: "user/name".
        out: The file; an older one is replaced.
        revision: Branch, tag or commit; None for the newest.
        endpoint: Address of another hub.

    Raises:
        UserError: The file is none of a prompt encoder, or as `weights.hub.download`.
    """
    cached = hub.download(repo, revision=revision, endpoint=endpoint)
    try:
        trained = verified(cached)
    except UserError as error:
        raise UserError(f"{repo} holds no prompt encoder for this library: {error}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as part:
        shutil.copyfile(cached, part)
    return trained


def verified(path: pathlib.Path) -> Trained:
    """What a file says of its prompt encoder; ValueError unless its arrays are those it needs."""
    trained = prompt_encoder.read(path)
    model.load_prompt_encoder(path, trained.config, trained.merged_channels)
    return trained


def card(trained: Trained, repo: str) -> str:
    """The model card: what the file says and how it is used."""
    rows = "\n".join(
        f"| {name} | {value} |" for name, value in prompt_encoder.facts(trained).items()
    )
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


def describe(path: pathlib.Path, trained: Trained) -> str:
    """What a file says, in lines for people."""
    rows = {"file": f"{path}, {path.stat().st_size:,} bytes"} | prompt_encoder.facts(trained)
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    args = _parser().parse_args(argv)
    logging.set_verbosity(logging.ERROR)  # Orbax warns of reading only what is only read
    try:
        if args.command in ("export", "pull") and args.out.exists() and not args.force:
            raise UserError(f"{args.out} exists already: pass --force, or another --out")
        if args.command == "export":
            print(describe(args.out, export(args.workdir, args.checkpoint, args.out)))
        elif args.command == "show":
            trained = prompt_encoder.read(args.file)
            print(describe(args.file, trained))
            print("settings that differ from the defaults:")
            for line in changed(Config(), trained.config, ()):
                print(f"  {line}")
        elif args.command == "push":
            print(push(args.file, args.repo, private=args.private))
        else:
            print(describe(args.out, pull(args.repo, args.out, revision=args.revision)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prosam_jax.prompt_file",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    exporting = commands.add_parser("export", help="write a run's checkpoint to a file")
    exporting.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of the run")
    exporting.add_argument("--out", type=pathlib.Path, required=True, help="the .safetensors file")
    exporting.add_argument("--checkpoint", default="best", help="best, latest or a step")
    exporting.add_argument("--force", action="store_true", help="overwrite the file")
    showing = commands.add_parser("show", help="say what a file is")
    showing.add_argument("file", type=pathlib.Path)
    pushing = commands.add_parser("push", help="upload a file to a hub")
    pushing.add_argument("file", type=pathlib.Path)
    pushing.add_argument("--repo", required=True, help="USER/NAME, made if it is missing")
    pushing.add_argument("--private", action="store_true", help="make the repository private")
    pulling = commands.add_parser("pull", help="download a file from a hub")
    pulling.add_argument("repo", help="USER/NAME")
    pulling.add_argument("--out", type=pathlib.Path, required=True, help="the .safetensors file")
    pulling.add_argument("--revision", help="branch, tag or commit; the newest if not given")
    pulling.add_argument("--force", action="store_true", help="overwrite the file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
