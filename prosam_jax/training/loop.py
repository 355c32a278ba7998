"""The training loop, with validation, checkpoints and resumption."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from prosam_jax import console, model, sharding
from prosam_jax.atomic import check_place, locked
from prosam_jax.config import (
    CHANGES_NO_NUMBER,
    Config,
    Role,
    changed,
    read_config,
    replaced,
    write_config,
)
from prosam_jax.data import datasets, folds
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError
from prosam_jax.evaluation import evaluate, metrics, prediction, results
from prosam_jax.feature_cache.cache import opened
from prosam_jax.report import scores
from prosam_jax.report.curves import BOARD, METRICS, Curves, newest
from prosam_jax.training import not_finite, state, step
from prosam_jax.training.signals import Interrupted, Signals, Stopped
from prosam_jax.types import Episode
from prosam_jax.weights import prompt_encoder
from prosam_jax.weights.checkpoint import CHECKPOINTS, SAVED, Checkpoints
from prosam_jax.weights.prompt_encoder import Dataset

LOCK = "training.lock"
"""File of a run's folder that is locked while a process trains there."""


def train(cfg: Config, workdir: pathlib.Path) -> None:
    """Trains the prompt encoder, or resumes the run in `workdir` if it has a checkpoint.

    Training starts from the latest checkpoint in `workdir`, or else from the file `prompt.weights`,
    or else from initial parameters drawn from the seed. It writes `config.json`, `frozen.json`,
    `dataset.json`, `metrics.jsonl`, `tensorboard/` and `checkpoints/` to `workdir`.

    Raises:
        UserError: A setting, a file or an old run in `workdir` does not fit, another process
            trains there, or the disk is full.
        FloatingPointError: A metric is no longer finite; the message names metric, step and
            the file with the batch.
        Stopped: A signal of `signals.ENDING` was received; the state is saved.
    """
    told = f"another process is training in {workdir}: wait until it ends, or stop it"
    with locked(workdir / LOCK, told):
        _train(cfg, workdir)


def _train(cfg: Config, workdir: pathlib.Path) -> None:
    for name in ("config.json", prompt_encoder.FROZEN, prompt_encoder.DATASET, METRICS, SAVED):
        check_place(workdir / name)
    for name in (BOARD, CHECKPOINTS):
        check_place(workdir / name / "any")
    checkpoints = Checkpoints(workdir)
    if goes_on := bool(checkpoints.steps):
        began = _check_run(cfg, workdir, checkpoints.newest_whole())
        # The file that it started from is no longer needed and may be gone.
        trainer = Trainer(replaced(cfg, {"prompt.weights": ""}))
        if prompt_encoder.read_dataset(workdir) not in (None, trainer.dataset):
            raise UserError(
                f"{workdir} is trained on other classes or images than those of data.name="
                f"{cfg.data.name}, data.root={cfg.data.root!r}: pass the data of the run, or "
                "another --workdir"
            )
        cfg = replaced(cfg, {"prompt.weights": began.prompt.weights})
        # Only now: a run that is refused stays as it is.
        for line in checkpoints.mend():
            console.note(line)
    else:
        _check_no_history(workdir)
        trainer = Trainer(cfg)
    write_config(cfg, workdir / "config.json")
    if not goes_on:
        prompt_encoder.write_frozen(cfg, workdir)
        prompt_encoder.write_dataset(trainer.dataset, workdir)
    # A second signal must not interrupt the saving that the first one caused.
    with Signals() as signals:
        start = checkpoints.latest or 0
        if start:
            trainer.state = checkpoints.restore(start, trainer.state)
        trainer.print_facts()
        unscored = start > 0 and trainer.is_due(start) and not checkpoints.validated(start)
        if start >= trainer.total and not unscored:
            console.note(f"nothing to do: {workdir} is at step {start} of {trainer.total}")
            return
        origin = f" with {cfg.prompt.weights}" if cfg.prompt.weights else ""
        begins = f"resuming at step {start}" if start else f"starting{origin} at step 0"
        console.note(f"{begins} in {workdir}")
        try:
            trainer.run(start, workdir, checkpoints, signals, validate_first=unscored)
        except OSError as error:
            raise UserError(
                f"{workdir}: {error}, {checkpoints.safe}: mend that, then run the same command "
                "again"
            ) from error
        except not_finite.NotFinite as error:
            at = checkpoints.latest or 0
            rate = cfg.train.learning_rate
            kept = not_finite.keep_batch(
                workdir,
                error.step,
                trainer.source,
                cfg.train.batch_size,
                after=at,
                learning_rate=rate,
            )
            raise FloatingPointError(
                f"{error}; {kept}; the same command with a --config.train.learning_rate below "
                f"{rate:g} " + (f"goes on from step {at}" if at else "begins again at step 0")
            ) from error
        best = checkpoints.best
    known = "not validated" if best is None else f"best validation at step {best}"
    print(f"{workdir}: trained to step {trainer.total}, {known}")
    if trainer.cache:
        console.note(trainer.cache.summary())


def _check_no_history(workdir: pathlib.Path) -> None:
    """Raises UserError if a run in `workdir` has lost the checkpoints that it must have had."""
    reached = newest(workdir).get("step", 0) if (workdir / METRICS).exists() else 0
    lost = (workdir / SAVED).exists()
    if not lost and reached:  # of a version that wrote no such file
        lost = reached > read_config(workdir / "config.json").train.checkpoint_every
    if lost:
        raise UserError(
            f"{workdir} has a run that reached step {reached or 'unknown'} and saved checkpoints, "
            "but none to go on from: restore its checkpoints/, or choose another --workdir to "
            "begin again"
        )


def _check_run(cfg: Config, workdir: pathlib.Path, at: int) -> Config:
    """The settings that the run in `workdir` goes on with; UserError if `cfg` does not fit it.

    They are those that it started with; after a loss that was not finite, step `at` is followed by
    steps of another learning rate.
    """
    began = read_config(workdir / "config.json")
    before, after = began.train.learning_rate, cfg.train.learning_rate
    if after != before and not_finite.ended(workdir, after=at, learning_rate=before):
        console.note(f"train.learning_rate: {before:g} -> {after:g} after step {at}")
        began = replaced(began, {"train.learning_rate": after})
    may = CHANGES_NO_NUMBER
    if cfg.train.schedule != "cosine":  # whose learning rates depend on the length
        may |= {Role.LENGTH}
    if differences := changed(began, cfg, may):
        length = (
            "; with train.schedule=cosine its length is part of the run"
            if changed(began, cfg, may | {Role.LENGTH}) != differences
            else ""
        )
        raise UserError(
            f"{workdir} has a run with other settings ({'; '.join(differences)}){length}: leave "
            "these and --config out to continue it, or choose another --workdir"
        )
    trained_on = prompt_encoder.read_frozen(workdir)
    model.fetch(cfg)
    prompt_encoder.check_frozen(workdir, trained_on, prompt_encoder.frozen_weights(cfg))
    return began


class Trainer:
    """A run in memory: data, frozen networks, compiled steps and the training state.

    Raises:
        UserError: A setting or a file is not valid.
    """

    def __init__(self, cfg: Config):
        self.cfg = cfg
        source = datasets.episodes(cfg.data, "train", seed=cfg.seed)
        images = len(source.fold.images)
        self.total = state.total_steps(cfg.train, images)
        self.eval_every = cfg.train.eval_every or state.steps_per_epoch(cfg.train, images)
        self.source = dataclasses.replace(source, length=self.total * cfg.train.batch_size)
        fold = source.fold
        self.dataset = Dataset(cfg.data.name, list(fold.class_names), folds.digest(fold))
        self.test = evaluate.test_episodes(cfg, datasets.scored(cfg.data)[0])
        if file := cfg.prompt.weights:
            prompt_encoder.check_fold(file, cfg)
            begun = prompt_encoder.read(file)
            if cfg.data.name == "folder" or cfg.data.name != begun.benchmark:
                seen, tested = begun.classes or (), evaluate.test_episodes(cfg).fold.class_names
                prompt_encoder.check_unseen(file, folds.in_coco(seen), folds.in_coco(tested))
        self.mesh = sharding.make_mesh(cfg.train.batch_size)
        self.learning_rate = state.schedule(cfg.train, images)
        tx = state.optimizer(cfg.train, self.learning_rate)
        graph, params, frozen = model.split(model.build(cfg))
        self.frozen = sharding.replicate(frozen, self.mesh)
        self.state = sharding.replicate(state.create(params, tx), self.mesh)
        self.train_step = step.make_train_step(graph, tx, cfg.seed, self.mesh)
        self.predict = prediction.make_predict_step(
            graph, original=cfg.eval.resolution == "original"
        )
        sam = nnx.merge(graph, self.state.params, self.frozen).sam
        self.cache = opened(cfg.cache, sam, lambda x: sharding.split_batch(x, self.mesh))

    def print_facts(self) -> None:
        """Prints devices, networks and data of the run on stderr."""
        for line in (
            f"devices: {self.mesh.size} of {results.device_line()}",
            f"frozen: {scores.frozen_line(self.cfg)}",
            f"learned: {state.parameters(self.state.params):,} parameters, "
            f"{self.cfg.distribution.name}",
            folds.describe(self.source.fold),
            folds.describe(self.test.fold),
            f"{self.total} steps of {self.cfg.train.batch_size} episodes",
        ):
            console.note(line)
        if self.cache:
            targets = (min(len(x), len(x.fold.images)) for x in (self.source, self.test))
            console.note(self.cache.announce(sum(targets)))

    def is_due(self, i: int) -> bool:
        """Whether step `i` is followed by a validation."""
        return self.eval_every > 0 and (i % self.eval_every == 0 or i == self.total)

    def run(
        self,
        start: int,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        signals: Signals,
        *,
        validate_first: bool,
    ) -> None:
        """Takes the steps from `start` to the end.

        Args:
            start: Steps already taken.
            workdir: Folder for the curves.
            checkpoints: Where states are saved.
            signals: An entered `Signals`; a signal that it receives ends the run.
            validate_first: Whether to validate `start` first, because that was interrupted.

        Raises:
            NotFinite: A metric is not finite.
            Stopped: A signal was received; the state is saved.
            UserError: A picture cannot be read, or a reader was killed or hangs; the state is
                saved.
        """
        cfg = self.cfg.train
        with contextlib.ExitStack() as stack:
            curves = stack.enter_context(contextlib.closing(Curves(workdir, start)))
            bar = stack.enter_context(console.Progress(self.total, start, cfg.batch_size))
            keep = _Keeper(self, checkpoints, curves, bar, signals)
            if validate_first:
                keep(start, validate=True)
            loader = make_loader(
                self.source,
                batch_size=cfg.batch_size,
                start=min(start, self.total),
                workers=self.cfg.data.workers,
                patience=self.cfg.data.patience,
                on_wait=signals.check,
            )
            stack.enter_context(contextlib.closing(loader))
            window = Window(start, cfg.batch_size)

            def write_log(i: int) -> None:
                # Checked before anything is saved, so that no checkpoint contains a NaN.
                values = window.values()
                rate = np.asarray(self.learning_rate(i - 1)).item()
                curves.write("train", i, values | {"learning_rate": rate})
                bar.show(i, values)

            batch, embeddings = None, None
            for i in range(start + 1, self.total + 1):
                try:
                    episode = next(loader)
                except (UserError, Interrupted) as error:
                    if window.logs:
                        write_log(i - 1)
                    if batch is not None:
                        self.check_usable(i - 1, batch, embeddings)
                    keep.and_end(i - 1, error)
                batch = sharding.split_batch(episode, self.mesh)
                embeddings = self.cache(episode.target_image) if self.cache else None
                # One step runs while the next is queued, so that a device has no pause between
                # them; no more, so that a signal takes effect within three and the bar is accurate.
                jax.block_until_ready(window.logs[-2:-1])
                self.state, logs = self.train_step(self.state, self.frozen, batch, embeddings)
                window.add(logs, episode.class_id)
                bar.advance(i)
                last = i == self.total
                save = last or self.is_due(i) or i % cfg.checkpoint_every == 0 or signals.received
                log = save or i % cfg.log_every == 0
                if log:
                    write_log(i)
                if save:
                    self.check_usable(i, batch, embeddings)
                    keep(i, validate=self.is_due(i))
                if log:
                    window = Window(i, cfg.batch_size)

    def check_usable(self, i: int, batch: Episode, embeddings: Array | None) -> None:
        """Takes a step from a copy of the state after step `i`, which is then known to be usable.

        A learning rate far too large leaves parameters that are finite but give no finite loss; a
        run that had saved them could not go on with any other.

        Raises:
            NotFinite: The loss or its gradient is not finite.
        """
        copy = jax.tree.map(jnp.copy, self.state)
        _, logs = self.train_step(copy, self.frozen, batch, embeddings)
        not_finite.check(jax.device_get(logs), i, "after")

    def validate(self, on_batch: Callable[[int], None]) -> results.Result:
        """Scores the current state on the episodes of the fold's split for validation."""
        return evaluate.evaluate(
            self.predict,
            self.state.params,
            self.frozen,
            self.test,
            batch_size=self.cfg.eval.batch_size,
            mesh=self.mesh,
            absent=self.cfg.eval.absent == "zero",
            cache=self.cache,
            workers=self.cfg.data.workers,
            patience=self.cfg.data.patience,
            on_batch=on_batch,
        )


@dataclasses.dataclass
class _Keeper:
    """Validates if asked to, and saves; a signal interrupts the validation and then the run."""

    trainer: Trainer
    checkpoints: Checkpoints
    curves: Curves
    bar: console.Progress
    signals: Signals

    def __call__(self, i: int, *, validate: bool) -> None:
        miou = None
        if validate:
            try:
                result = self.trainer.validate(self.signals.check)
            except (UserError, Interrupted) as error:
                self.and_end(i, error)
            miou = result.scores.miou
            self.curves.write("validation", i, {"miou": miou, "fb_iou": result.scores.fb_iou})
            self.bar.print(f"step {i}: validation {scores.summary(result)}")
        self._save(i, miou)
        if self.signals.received:
            raise Stopped(self.signals.received, i)

    def and_end(self, i: int, error: UserError | Interrupted) -> NoReturn:
        """Saves, because the run cannot go on after step `i`, and ends it."""
        self._save(i, None)
        if isinstance(error, Interrupted):
            raise Stopped(self.signals.received, i) from None
        if i == 0:
            raise error
        raise UserError(f"{error}; step {i} is saved, and the same command goes on from it")

    def _save(self, i: int, miou: float | None) -> None:
        # Without a validation, one that is there is the same; there is nothing to keep of step 0.
        if miou is not None or (i and i not in self.checkpoints.steps):
            self.checkpoints.save(i, self.trainer.state, miou)


class Window:
    """Metrics of the steps since the last line of the log; they stay on the device until read."""

    def __init__(self, start: int, batch_size: int):
        self.start, self.batch_size = start, batch_size
        self.began = time.monotonic()
        self.logs: list[dict[str, jax.Array]] = []
        self.classes: list[np.ndarray] = []

    def add(self, logs: dict[str, jax.Array], class_id: np.ndarray) -> None:
        """Adds the metrics of a step."""
        self.logs.append(logs)
        self.classes.append(class_id)

    def values(self) -> dict[str, float]:
        """Means of the metrics over the window, "miou" and "episodes_per_s".

        Raises:
            NotFinite: A metric is not finite; the message names it and its step.
        """
        logs = jax.device_get(self.logs)
        counts = []
        for i, log in enumerate(logs, self.start + 1):
            not_finite.check(log, i, "at")
            inter, union = log.pop("intersection"), log.pop("union")
            counts.append(np.stack([inter, union - inter, 0 * union, 0 * union], axis=1))
        means = {name: float(np.mean([log[name] for log in logs])) for name in logs[0]}
        rate = len(logs) * self.batch_size / (time.monotonic() - self.began)
        miou = metrics.scores(np.concatenate(counts), np.concatenate(self.classes)).miou
        return means | {"miou": miou, "episodes_per_s": rate}
