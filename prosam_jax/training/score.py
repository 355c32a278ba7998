"""Scoring a checkpoint of a run, what `evaluate.py` does."""

import contextlib
import pathlib

from prosam_jax import model
from prosam_jax.checkpoint import Checkpoints
from prosam_jax.config import Config
from prosam_jax.data.benchmark import describe
from prosam_jax.training import evaluation, report, sharding, state, step

# What may differ from the run's own settings without making its parameters mean something else.
FREE = (
    "data.root",
    "data.shots",
    "data.val_list",
    "data.workers",
    "eval.batch_size",
    "eval.episodes",
    "eval.pictures",
    "eval.seed",
    "sam.dtype",
)


def score(cfg: Config, workdir: pathlib.Path, checkpoint: str) -> evaluation.Result:
    """Evaluates one checkpoint on the fold's fixed list of test episodes.

    Prints mIoU, FB-IoU and the IoU of each class; writes `results.json` and, if
    `eval.pictures` is above 0, `examples.png` into `workdir`.

    Args:
        cfg: Settings of the run (`config.read_config`).
        workdir: Folder of the run.
        checkpoint: "best" (by validation mIoU), "latest" or a step.

    Raises:
        ValueError: There is no such checkpoint, or settings and files do not fit.
    """
    source = evaluation.test_episodes(cfg)
    mesh = sharding.make_mesh(cfg.eval.batch_size)
    with contextlib.closing(Checkpoints(workdir, read_only=True)) as checkpoints:
        at = _find(checkpoints, checkpoint, workdir)
        graph, params, frozen = step.split(model.build(cfg))
        # The optimiser's state comes along; only its structure matters here.
        tx = state.optimizer(cfg.train, state.schedule(cfg.train, images=1))
        like = sharding.replicate(state.create(params, tx), mesh)
        params = checkpoints.restore(at, like).params
    frozen = sharding.replicate(frozen, mesh)
    for line in (
        f"devices: {mesh.size} of {report.device_line()}",
        f"frozen: {report.frozen_line(cfg)}",
        f"learned: {state.parameters(params):,} parameters, {cfg.distribution.name}, "
        f"step {at} of {workdir}",
        describe(cfg.data, source),
    ):
        print(line, flush=True)
    with report.counting("evaluating", len(source)) as count:
        result = evaluation.evaluate(
            step.make_predict_step(graph),
            params,
            frozen,
            source,
            batch_size=cfg.eval.batch_size,
            mesh=mesh,
            workers=cfg.data.workers,
            examples=cfg.eval.pictures,
            on_batch=count,
        )
    report.print_scores(result)
    report.write_results(workdir / "results.json", result, cfg, at)
    print(f"wrote {workdir / 'results.json'}")
    if cfg.eval.pictures:
        report.draw_examples(workdir / "examples.png", result.examples)
        print(f"wrote {workdir / 'examples.png'}")
    return result


def _find(checkpoints: Checkpoints, name: str, workdir: pathlib.Path) -> int:
    known = checkpoints.steps
    step_of = {"best": checkpoints.best, "latest": checkpoints.latest} | {
        str(step): step for step in known
    }
    if (found := step_of.get(name)) is None:
        kept = ", ".join(map(str, known)) or "none"
        raise ValueError(
            f"--checkpoint={name}: {workdir} has no such checkpoint (steps kept: {kept}); "
            "pass best, latest or one of these steps, or train first with train.py"
        )
    return found
