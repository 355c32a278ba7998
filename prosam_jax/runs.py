"""Evaluation of trained prompt encoders, from a run's checkpoint or from a file."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from prosam_jax import console, equations, model, sharding
from prosam_jax.atomic import check_place
from prosam_jax.config import (
    CHANGES_NO_NUMBER,
    OF_AN_EVALUATION,
    Config,
    Role,
    changed,
    names_of,
    replaced,
)
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.folds import describe
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls, evaluate, prediction, results
from prosam_jax.feature_cache.cache import opened
from prosam_jax.report import pictures, scores
from prosam_jax.training import state
from prosam_jax.weights import prompt_encoder

RESULTS = "results.json"
EXAMPLES = "examples.png"
SAMPLES = 8
"""Number of prompts drawn for an uncertainty map."""


def settings(
    trained: Config, overrides: Mapping[str, Any], may: frozenset[Role] = OF_AN_EVALUATION
) -> Config:
    """The settings of a training, changed for an evaluation.

    Args:
        trained: Settings of the training.
        overrides: New values by dotted name.
        may: Roles of the settings that may change.

    Raises:
        UserError: A changed setting does not have one of these roles, or is not valid.
    """
    cfg = replaced(trained, overrides)
    if differences := changed(trained, cfg, may):
        raise UserError(
            f"these settings belong to the training and cannot be changed: "
            f"{'; '.join(differences)}; you can change {names_of(may - CHANGES_NO_NUMBER)}, and "
            "what changes no number"
        )
    return cfg


def settings_of_file(file: pathlib.Path, overrides: Mapping[str, Any]) -> Config:
    """The settings with which the file of a trained prompt encoder is evaluated.

    Raises:
        UserError: As for `settings`; or neither the file nor `overrides` has the fold, or the file
            may have been trained on the classes to be tested.
    """
    trained = prompt_encoder.read(file)
    if trained.fold is None and "data.fold" not in overrides:
        raise UserError(
            f"{file} does not say which fold it was trained on, and scores on classes that it has "
            "seen prove nothing: pass --config.data.fold=0, 1, 2 or 3"
        )
    own = trained.config.data.name == "folder" and trained.classes is not None
    may = OF_AN_EVALUATION
    if trained.fold is None or own:  # `score_file` looks at the classes of one's own pictures
        may |= {Role.BENCHMARK}
    cfg = replaced(trained.config, {**overrides, "prompt.weights": str(file)})
    prompt_encoder.check_fold(file, cfg)
    return replaced(settings(trained.config, overrides, may), {"prompt.weights": str(file)})


def score(cfg: Config, workdir: pathlib.Path, checkpoint: str) -> results.Result:
    """Evaluates a checkpoint of a run; see `score_file` for the output.

    Args:
        cfg: Settings of the run (`config.read_config`).
        workdir: Folder of the run.
        checkpoint: "best" (by validation mIoU), "latest" or a step.

    Raises:
        UserError: There is no such checkpoint, or settings and files do not fit.
    """
    _check_places(cfg, workdir)
    cfg = replaced(cfg, {"prompt.weights": ""})  # where the run started from no longer matters
    source = evaluate.test_episodes(cfg)
    if cfg.data.name == "folder":
        dataset = prompt_encoder.read_dataset(workdir)
        seen = dataset.classes if dataset else None
        prompt_encoder.check_unseen(workdir, seen, source.fold.class_names)
    parts, at = model.restored(cfg, workdir, checkpoint)
    return _score(cfg, workdir, source, parts, at, f"step {at} of {workdir}")


def score_file(cfg: Config, workdir: pathlib.Path) -> results.Result:
    """Evaluates the file `prompt.weights` on the fold's fixed list of test episodes.

    Prints mIoU, FB-IoU and the IoU of each class; writes `results.json` and, if `eval.pictures` is
    above 0, `examples.png` to `workdir`.

    Raises:
        UserError: Settings and files do not fit.
    """
    _check_places(cfg, workdir)
    file = cfg.prompt.weights
    source = evaluate.test_episodes(cfg)
    trained = prompt_encoder.read(file)
    if cfg.data.name == "folder":
        prompt_encoder.check_unseen(file, trained.classes, source.fold.class_names)
    parts = model.split(model.build(cfg))
    return _score(cfg, workdir, source, parts, trained.step, file)


def _check_places(cfg: Config, workdir: pathlib.Path) -> None:
    for name in (RESULTS, EXAMPLES) if cfg.eval.pictures else (RESULTS,):
        check_place(workdir / name)


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
        console.note(line)
    sam = nnx.merge(parts.graph, params, frozen).sam
    cache = opened(cfg.cache, sam, lambda x: sharding.split_batch(x, mesh))
    if cache:
        console.note(cache.announce(min(len(source), len(source.fold.images))))
    predict = prediction.make_predict_step(parts.graph)
    if cfg.eval.controls:
        # Of one class alone there is no reference of another.
        source = dataclasses.replace(source, wrong=len(source.fold.filled) > 1)
        if not source.wrong:
            console.note(f"without the control {controls.WRONG!r}: only one class is tested")
        predict = _with_controls(cfg, parts, mesh, wrong=source.wrong)
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
            patience=cfg.data.patience,
            examples=cfg.eval.pictures,
            on_batch=count,
        )
    if cfg.eval.controls:
        result = controls.chosen(result)
    try:
        # First of all: whatever may happen while it is shown, the result is kept.
        workdir.mkdir(parents=True, exist_ok=True)
        results.write_results(workdir / RESULTS, result, cfg, at)
    except OSError as error:
        scores.print_scores(result)
        raise _unwritten(workdir / RESULTS, error) from error
    scores.print_scores(result)
    if cache:
        console.note(cache.summary())
    print(f"wrote {workdir / RESULTS}")
    if cfg.eval.pictures:
        try:
            pictures.draw_examples(workdir / EXAMPLES, result.examples)
        except OSError as error:
            raise _unwritten(workdir / EXAMPLES, error) from error
        print(f"wrote {workdir / EXAMPLES}")
    return result


def _unwritten(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written ({error.strerror or error}); stdout has the scores, and the "
        "same command, once that is mended, makes the file"
    )


def _with_controls(cfg: Config, parts: model.Parts, mesh: Mesh, *, wrong: bool) -> controls.Predict:
    channels = nnx.merge(*parts).backbone.merged_channels
    fresh = sharding.replicate(controls.untrained(cfg, channels), mesh)
    sampled = cfg.eval.pictures and cfg.distribution.name in equations.SAMPLERS
    return controls.make_step(parts.graph, fresh, samples=SAMPLES if sampled else 0, wrong=wrong)
