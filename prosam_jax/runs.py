"""Evaluation of trained prompt encoders, from a run's checkpoint or from a file."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
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
EPISODES = "episodes.csv"
EXAMPLES = "examples.png"


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


def score(
    cfg: Config, workdir: pathlib.Path, checkpoint: str, out: pathlib.Path | None = None
) -> results.Result:
    """Evaluates a checkpoint of a run; see `score_file` for the output.

    Args:
        cfg: Settings of the run (`config.read_config`).
        workdir: Folder of the run.
        checkpoint: "best" (by validation mIoU), "latest" or a step.
        out: Folder for the output, `workdir` if it is None.

    Raises:
        UserError: There is no such checkpoint, or settings and files do not fit.
    """
    _check_places(cfg, out or workdir)
    cfg = replaced(cfg, {"prompt.weights": ""})  # where the run started from no longer matters
    sources = _sources(cfg)
    if cfg.data.name == "folder":
        dataset = prompt_encoder.read_dataset(workdir)
        seen = dataset.classes if dataset else None
        prompt_encoder.check_unseen(workdir, seen, sources[0].fold.class_names)
    parts, at = model.restored(cfg, workdir, checkpoint)
    return _score(cfg, out or workdir, sources, parts, at, f"step {at} of {workdir}")


def score_file(cfg: Config, workdir: pathlib.Path) -> results.Result:
    """Evaluates the file `prompt.weights` on the fold's fixed lists of test episodes.

    Prints mIoU, FB-IoU and the IoU of each class; writes `results.json`, `episodes.csv` and, if
    `eval.pictures` is above 0, `examples.png` to `workdir`.

    Raises:
        UserError: Settings and files do not fit.
    """
    _check_places(cfg, workdir)
    file = cfg.prompt.weights
    sources = _sources(cfg)
    trained = prompt_encoder.read(file)
    if cfg.data.name == "folder":
        prompt_encoder.check_unseen(file, trained.classes, sources[0].fold.class_names)
    parts = model.split(model.build(cfg))
    return _score(cfg, workdir, sources, parts, trained.step, file)


def _sources(cfg: Config) -> list[EpisodeSource]:
    """The lists of test episodes.

    Raises:
        UserError: The dataset is not valid, or strategies are asked for and nothing can be sampled.
    """
    if cfg.eval.samples and cfg.distribution.name not in equations.SAMPLERS:
        raise UserError(
            f"eval.samples={cfg.eval.samples} draws prompts, and distribution.name="
            f"{cfg.distribution.name} has none to draw: pass --config.eval.samples=0"
        )
    return [evaluate.test_episodes(cfg, which=i) for i in range(cfg.eval.seeds)]


def _check_places(cfg: Config, workdir: pathlib.Path) -> None:
    for name in (RESULTS, EPISODES, *((EXAMPLES,) if cfg.eval.pictures else ())):
        check_place(workdir / name)


def _score(
    cfg: Config,
    workdir: pathlib.Path,
    sources: Sequence[EpisodeSource],
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
        describe(sources[0].fold),
    ):
        console.note(line)
    sam = nnx.merge(parts.graph, params, frozen).sam
    cache = opened(cfg.cache, sam, lambda x: sharding.split_batch(x, mesh))
    if cache:
        episodes = sum(map(len, sources))
        console.note(cache.announce(min(episodes, len(sources[0].fold.images))))
    # Of one class alone there is no reference of another.
    wrong = cfg.eval.controls and len(sources[0].fold.filled) > 1
    if cfg.eval.controls and not wrong:
        console.note(f"without the control {controls.WRONG!r}: only one class is tested")
    predict = _compiled(cfg, parts, mesh, wrong=wrong)
    found: list[results.Result] = []
    with console.counting("evaluating", sum(map(len, sources))) as count:
        for source in sources:
            before = sum(x.episodes for x in found)
            one = evaluate.evaluate(
                predict,
                params,
                frozen,
                dataclasses.replace(source, wrong=wrong),
                batch_size=cfg.eval.batch_size,
                mesh=mesh,
                absent=cfg.eval.absent == "zero",
                cache=cache,
                workers=cfg.data.workers,
                patience=cfg.data.patience,
                examples=0 if found else cfg.eval.pictures,
                on_batch=lambda done, before=before: count(before + done),
            )
            found.append(one)
    result = results.joined(found)
    if cfg.eval.controls:
        result = controls.chosen(result)
    path = workdir / RESULTS
    try:
        # First of all: whatever may happen while it is shown, the result is kept.
        workdir.mkdir(parents=True, exist_ok=True)
        results.write_results(path, result, cfg, at)
        path = workdir / EPISODES
        results.write_episodes(path, result)
    except OSError as error:
        scores.print_scores(result)
        raise _unwritten(path, error) from error
    scores.print_scores(result)
    if cache:
        console.note(cache.summary())
    print(f"wrote {workdir / RESULTS}\nwrote {path}")
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


def _compiled(cfg: Config, parts: model.Parts, mesh: Mesh, *, wrong: bool) -> controls.Predict:
    original, samples = cfg.eval.resolution == "original", cfg.eval.samples
    if not cfg.eval.controls:
        return prediction.make_predict_step(parts.graph, samples=samples, original=original)
    channels = nnx.merge(*parts).backbone.merged_channels
    fresh = sharding.replicate(controls.untrained(cfg, channels), mesh)
    return controls.make_step(parts.graph, fresh, samples=samples, original=original, wrong=wrong)
