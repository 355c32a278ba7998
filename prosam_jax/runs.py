"""Scoring trained parameters, what `evaluate.py` does."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from prosam_jax import console, equations, model, sharding
from prosam_jax.config import Config, changed, replaced
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import describe
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls, evaluate, prediction, results
from prosam_jax.feature_cache.cache import opened
from prosam_jax.report import pictures, scores
from prosam_jax.training import state
from prosam_jax.weights import prompt_encoder
from prosam_jax.weights.checkpoint import Checkpoints

# What may differ from the run's own settings without making its parameters mean something else.
FREE = (
    "cache.dir",
    "cache.dtype",
    "data.annotation",
    "data.bad_files",
    "data.cueless",
    "data.downsample",
    "data.root",
    "data.shots",
    "data.test",
    "data.test_root",
    "data.val_list",
    "data.workers",
    "eval.batch_size",
    "eval.controls",
    "eval.episodes",
    "eval.pictures",
    "eval.seed",
    "sam.attention",
    "sam.dtype",
)
SAMPLES = 8
"""Prompts drawn for a map of uncertainty."""
# What else may, where nobody knows what the parameters were trained on.
BENCHMARK = ("data.name", "data.fold", "data.image_size", "data.novel", "data.train_list")


def settings(trained: Config, overrides: Mapping[str, Any], free: tuple[str, ...] = FREE) -> Config:
    """The settings of a training with the command line's changes.

    Raises:
        ValueError: A changed setting is none of `free`, or not valid.
    """
    cfg = replaced(trained, overrides)
    if differences := changed(trained, cfg, free):
        raise UserError(
            f"these settings belong to the run and cannot be changed: {'; '.join(differences)}; "
            f"free are {', '.join(free)}, and where the files of sam.weights and "
            "backbone.weights lie"
        )
    return cfg


def settings_of_file(file: pathlib.Path, overrides: Mapping[str, Any]) -> Config:
    """The settings under which a file of a trained prompt encoder is scored.

    Raises:
        ValueError: As `settings`, or the file does not know its fold, nor does the command line.
    """
    trained = prompt_encoder.read(file)
    free, fold = FREE, overrides.get("data.fold", trained.fold)
    if trained.fold not in (None, fold):
        raise UserError(
            f"{file} was trained on fold {trained.fold} and has seen the classes that "
            f"data.fold={fold} tests: leave the fold as it is"
        )
    if trained.fold is None:
        free += BENCHMARK
        if "data.fold" not in overrides:
            raise UserError(
                f"{file} does not say which fold it was trained on, and classes that it has seen "
                "prove nothing: pass --config.data.fold=0, 1, 2 or 3"
            )
    return replaced(settings(trained.config, overrides, free), {"prompt.weights": str(file)})


def score(cfg: Config, workdir: pathlib.Path, checkpoint: str) -> results.Result:
    """Evaluates one checkpoint of a run; see `score_file` for what comes of it.

    Args:
        cfg: Settings of the run (`config.read_config`).
        workdir: Folder of the run.
        checkpoint: "best" (by validation mIoU), "latest" or a step.

    Raises:
        ValueError: There is no such checkpoint, or settings and files do not fit.
    """
    cfg = replaced(cfg, {"prompt.weights": ""})  # where the run began no longer matters
    source = evaluate.test_episodes(cfg)
    parts, at = restored(cfg, workdir, checkpoint)
    return _score(cfg, workdir, source, parts, at, f"step {at} of {workdir}")


def restored(cfg: Config, workdir: pathlib.Path, checkpoint: str) -> tuple[model.Parts, int]:
    """The model of a checkpoint, as `score` takes it, and the step; ValueError as there."""
    trained_on = prompt_encoder.read_frozen(workdir)
    prompt_encoder.check_frozen(workdir, trained_on, prompt_encoder.frozen_weights(cfg))
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        at = find_step(checkpoints, checkpoint, workdir)
        parts = model.split(model.build(cfg))
        return parts._replace(params=restore_params(checkpoints, at, cfg, parts.params)), at


def score_file(cfg: Config, workdir: pathlib.Path) -> results.Result:
    """Evaluates the file `prompt.weights` on the fold's fixed list of test episodes.

    Prints mIoU, FB-IoU and the IoU of each class; writes `results.json` and, if
    `eval.pictures` is above 0, `examples.png` into `workdir`.

    Raises:
        ValueError: Settings and files do not fit.
    """
    file = cfg.prompt.weights
    source = evaluate.test_episodes(cfg)
    parts = model.split(model.build(cfg))
    return _score(cfg, workdir, source, parts, prompt_encoder.read(file).step, file)


def find_step(checkpoints: Checkpoints, name: str, workdir: pathlib.Path) -> int:
    """The step that `name` means: "best", "latest" or a number; ValueError if there is none."""
    known = checkpoints.steps
    step_of = {"best": checkpoints.best, "latest": checkpoints.latest} | {
        str(step): step for step in known
    }
    if (found := step_of.get(name)) is None:
        if name == "best" and known:
            raise UserError(
                f"{workdir} has no best checkpoint, because it was never validated: pass "
                "--checkpoint=latest"
            )
        kept = ", ".join(map(str, known)) or "none"
        raise UserError(
            f"--checkpoint={name}: {workdir} has no such checkpoint (steps kept: {kept}); "
            "pass best, latest or one of these steps, or train first with train.py"
        )
    return found


def restore_params(checkpoints: Checkpoints, at: int, cfg: Config, like: nnx.State) -> nnx.State:
    """The parameters of a checkpoint, in the structure of `like`."""
    # The optimiser's state comes along; only its structure matters here.
    tx = state.optimizer(cfg.train, state.schedule(cfg.train, images=1))
    whole = sharding.replicate(state.create(like, tx), sharding.make_mesh(cfg.eval.batch_size))
    return checkpoints.restore(at, whole).params


def _score(
    cfg: Config,
    workdir: pathlib.Path,
    source: EpisodeSource,
    parts: model.Parts,
    at: int | None,
    name: str,
) -> results.Result:
    mesh = sharding.make_mesh(cfg.eval.batch_size)
    params, frozen = sharding.replicate((parts.params, parts.frozen), mesh)
    for line in (
        f"devices: {mesh.size} of {results.device_line()}",
        f"frozen: {scores.frozen_line(cfg)}",
        f"learned: {state.parameters(params):,} parameters, {cfg.distribution.name}, {name}",
        describe(source.fold),
    ):
        print(line, flush=True)
    sam = nnx.merge(parts.graph, params, frozen).sam
    cache = opened(cfg.cache, sam, lambda x: sharding.split_batch(x, mesh))
    if cache:
        print(cache.announce(min(len(source), len(source.fold.images))), flush=True)
    predict = prediction.make_predict_step(parts.graph)
    if cfg.eval.controls:
        predict = _with_controls(cfg, parts, mesh)
        source = dataclasses.replace(source, wrong=True)
    with console.counting("evaluating", len(source)) as count:
        result = evaluate.evaluate(
            predict,
            params,
            frozen,
            source,
            batch_size=cfg.eval.batch_size,
            mesh=mesh,
            cache=cache,
            workers=cfg.data.workers,
            examples=cfg.eval.pictures,
            on_batch=count,
        )
    if cfg.eval.controls:
        result = controls.chosen(result)
    scores.print_scores(result)
    if cache:
        print(cache.summary())
    workdir.mkdir(parents=True, exist_ok=True)
    results.write_results(workdir / "results.json", result, cfg, at)
    print(f"wrote {workdir / 'results.json'}")
    if cfg.eval.pictures:
        pictures.draw_examples(workdir / "examples.png", result.examples)
        print(f"wrote {workdir / 'examples.png'}")
    return result


def _with_controls(cfg: Config, parts: model.Parts, mesh: Mesh) -> controls.Predict:
    channels = nnx.merge(*parts).backbone.merged_channels
    fresh = sharding.replicate(controls.untrained(cfg, channels), mesh)
    sampled = cfg.eval.pictures and cfg.distribution.name in equations.SAMPLERS
    return controls.make_step(parts.graph, fresh, samples=SAMPLES if sampled else 0)
