"""Checkpoints of a training: the latest one to resume from and the best one to evaluate."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from prosam_jax.errors import UserError

METRIC = "miou"


class Checkpoints:
    """The checkpoints of one run, kept by Orbax in `<workdir>/checkpoints`.

    Two are kept: the latest, and the one with the best validation mIoU. They are written in the
    background, and an unfinished checkpoint is never read as a complete one.

    Args:
        workdir: Folder of the run.
        read_only: Whether to change nothing, so that a training may be writing at the same time.
    """

    def __init__(self, workdir: pathlib.Path, *, read_only: bool = False):
        self._folder = workdir.resolve() / "checkpoints"
        latest = policies.LatestN(1)
        best = policies.BestN(get_metric_fn=_miou, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            self._folder,
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy([latest, best]),
                best_fn=_miou,
                best_mode="max",
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                create=not read_only,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    @property
    def latest(self) -> int | None:
        """The latest step, None if there is none."""
        return self._manager.latest_step()

    @property
    def best(self) -> int | None:
        """The step of the best validation, None if there was none."""
        return self._manager.best_step()

    def validated(self, step: int) -> bool:
        """Whether the checkpoint of `step` has a validation mIoU."""
        return bool(self._manager.metrics(step))

    def save(self, step: int, state: Any, miou: float | None = None) -> None:
        """Starts to write `state` and, if it was validated, its mIoU; replaces one of that step.

        Raises:
            OSError: The disk is full, maybe for the state before this one.
        """
        metrics = None if miou is None else {METRIC: miou}
        self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        with self._space():
            if step in self._manager.all_steps():
                self._manager.wait_until_finished()
                self._manager.delete(step)
            self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics, force=True)

    def restore(self, step: int, like: Any) -> Any:
        """Reads the state of `step` with the structure, dtypes and sharding of `like`.

        Raises:
            UserError: The stored tree differs from `like` in names or shapes.
        """
        self._check(step, like, self._manager.item_metadata(step).tree)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def restore_params(self, step: int, like: Any) -> Any:
        """Reads only the parameters of `step`, with the structure of `like`, onto one device.

        Raises:
            UserError: The stored parameters differ from `like` in names or shapes.
        """
        stored = self._manager.item_metadata(step).tree
        self._check(step, {"params": like}, {"params": stored["params"]})
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        whole = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), stored
        )
        found = _leaves(self._manager.restore(step, args=ocp.args.StandardRestore(whole))["params"])
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in _leaves(like)])

    def find(self, name: str) -> int:
        """The step that "best", "latest" or a number means.

        Raises:
            UserError: There is no such checkpoint.
        """
        known = self.steps
        step_of = {"best": self.best, "latest": self.latest} | {str(step): step for step in known}
        if (found := step_of.get(name)) is not None:
            return found
        if name == "best" and known:
            raise UserError(
                f"{self._folder.parent} has no best checkpoint, because the run was never "
                "validated: pass --checkpoint=latest"
            )
        kept = ", ".join(map(str, known)) or "none"
        raise UserError(
            f"--checkpoint={name}: {self._folder.parent} has no such checkpoint (steps kept: "
            f"{kept}); pass best, latest or one of these steps, or train first with: prosam train"
        )

    def _check(self, step: int, like: Any, stored: Any) -> None:
        held, wanted = _shapes(stored), _shapes(like)
        wrong = sorted(name for name in held | wanted if held.get(name) != wanted.get(name))
        if wrong:
            pairs = [
                f"{name} is {held.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
                for name in wrong[:8]
            ]
            raise UserError(
                f"checkpoint {self._folder / str(step)} differs from the model in {len(wrong)} "
                f"arrays ({'; '.join(pairs)}): choose another --workdir, or the settings of its "
                "config.json"
            )

    def close(self) -> None:
        """Waits until everything is on disk, and closes.

        Raises:
            OSError: The disk is full.
        """
        with self._space():
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()

    def _check_space(self, size: int) -> None:
        # Orbax's threads write hundreds of lines to stderr when they meet a full disk.
        if (free := shutil.disk_usage(self._folder).free) < size:
            told = (
                f"{os.strerror(errno.ENOSPC)} for a checkpoint: {size:,} bytes, {free:,} are free"
            )
            raise OSError(errno.ENOSPC, told, str(self._folder))

    @contextlib.contextmanager
    def _space(self) -> Iterator[None]:
        """Tells a full disk as the system does; Orbax's errors of it are of several types."""
        try:
            yield
        except Exception as error:
            for code in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(code) in str(error):
                    raise OSError(code, os.strerror(code), str(self._folder)) from error
            raise


def _miou(metrics: dict[str, float]) -> float:
    return metrics[METRIC]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
