"""Checkpoints of a training: the latest one to resume from and the best one to evaluate."""

import contextlib
import errno
import gc
import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from prosam_jax import console, json_files
from prosam_jax.atomic import PART
from prosam_jax.errors import UserError
from prosam_jax.weights.registry import sha256

CHECKPOINTS = "checkpoints"
"""Folder in a run's."""
ARRAYS = "arrays"
"""What Orbax writes of a checkpoint: a folder in the checkpoint's."""
SAVED = "saved.json"
"""File of a run's folder that says that it has had a checkpoint, and of which step first."""
SEAL = "checksums.json"
"""Step, score, and checksums of the arrays, of every file, and of this file itself."""

_ATTEMPTS = 5
_REPLACED = "was replaced by the training while it was read: run the same command again"
_OLDER = "default"  # `ARRAYS` of the versions that wrote no checksums
_NAME = re.compile(r"([0-9]+)(?:-([0-9]+))?")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints`.

    Two are kept: the latest, and the one with the best validation mIoU. Orbax writes the arrays;
    checksums are added, and the folder gets its name when it is complete. A checkpoint is verified
    before it is used, and removed only when a newer one is complete.

    Args:
        workdir: Folder of the run. Others may read it while one process trains.
    """

    def __init__(self, workdir: pathlib.Path):
        self._workdir = workdir
        self._folder = workdir.resolve() / CHECKPOINTS

    @property
    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or damaged, ascending."""
        return sorted(self._found())

    @property
    def latest(self) -> int | None:
        """The latest step, None if there is none."""
        return max(self._found(), default=None)

    @property
    def best(self) -> int | None:
        """The step of the best validation, None if there was none.

        Raises:
            UserError: The score of a checkpoint cannot be read.
        """
        found = {step: self._score(folder) for step, folder in sorted(self._found().items())}
        scores = {step: miou for step, miou in found.items() if miou is not None}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    @property
    def safe(self) -> str:
        """Where the run goes on after an error, for messages."""
        return "no step is saved yet" if self.latest is None else f"step {self.latest} is safe"

    def validated(self, step: int) -> bool:
        """Whether the checkpoint of `step` has a validation mIoU.

        Raises:
            UserError: The score cannot be read.
        """
        return self._score(self._found()[step]) is not None

    def newest_whole(self) -> int:
        """The latest step that a training can go on from; nothing is changed.

        Raises:
            UserError: No checkpoint is whole.
        """
        return max(self._found().keys() - self._problems().keys())

    def mend(self) -> list[str]:
        """Sets damaged checkpoints aside and removes unfinished ones, for a training to go on.

        Returns:
            A line for each that was damaged.

        Raises:
            UserError: There are checkpoints, but none is whole; nothing was changed.
            OSError: The folder cannot be written to.
        """
        found = self._found()
        lines = []
        for step, problem in self._problems().items():
            aside = self._folder / f"damaged-{found[step].name}"
            if aside.exists():
                aside = aside.with_name(f"{aside.name}-{uuid.uuid4().hex[:8]}")
            found[step].rename(aside)
            lines.append(f"checkpoint {found[step]} is damaged ({problem}): moved to {aside.name}")
        for pattern in (f".*{PART}", "*.orbax-checkpoint-tmp*"):
            for left in self._folder.glob(pattern):
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        return lines

    def save(self, step: int, state: Any, miou: float | None = None) -> None:
        """Writes `state` and, if it was validated, its mIoU; replaces one of that step.

        Raises:
            UserError: The disk is full or refuses to be written; older checkpoints stay.
        """
        part = self._folder / f".{uuid.uuid4().hex}{PART}"
        try:
            part.mkdir(parents=True)
            self._check_space(sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            with _muted():
                _orbax().save(part / ARRAYS, args=ocp.args.StandardSave(state))
            _seal(part, step, state, miou)
            last = self._found().get(step)
            part.rename(self._folder / (_successor(last) if last else str(step)))
            _sync(self._folder)
            if not (self._workdir / SAVED).exists():
                json_files.write_object(self._workdir / SAVED, {"step": step})
        except Exception as error:
            if (reason := _reason(error)) is None:
                raise
            raise UserError(
                f"{self._folder} cannot take the checkpoint of step {step} ({reason}), "
                f"{self.safe}: mend that, then run the same command again"
            ) from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
        self._prune()

    def restore(self, step: int, like: Any) -> Any:
        """Reads the state of `step` with the structure, dtypes and sharding of `like`.

        Raises:
            UserError: It is damaged, or its tree differs from `like` in names or shapes.
        """
        folder = self._verified(self._found()[step])
        self._check(folder, like, _tree(folder))
        state = _read(folder, jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
        self._check_arrays(folder, state)
        return state

    def restore_params(self, name: str, like: Any) -> tuple[int, Any]:
        """Reads only the parameters of "best", "latest" or a step, onto one device.

        A training may remove a checkpoint while it is read; then the one that has the name by now
        is read.

        Args:
            name: As `find` takes it.
            like: Parameters with the structure that they shall have.

        Returns:
            The step, and the parameters.

        Raises:
            UserError: It is damaged, or its parameters differ from `like` in names or shapes, or it
                was removed again and again.
        """
        for attempt in range(_ATTEMPTS):
            step = self.find(name)
            if (folder := self._found().get(step)) is None:
                continue
            try:
                return step, self._params(folder, like)
            except Exception:  # whatever Orbax makes of files that go
                if folder.exists() or attempt == _ATTEMPTS - 1:
                    raise
        raise UserError(f"checkpoint {name} {_REPLACED}")

    def _params(self, folder: pathlib.Path, like: Any) -> Any:
        self._verified(folder)
        stored = _tree(folder)
        self._check(folder, {"params": like}, {"params": stored.get("params", {})})
        state = _read(folder, _on_one_device(stored))
        self._check_arrays(folder, state)
        found = _leaves(state["params"])
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in _leaves(like)])

    def find(self, name: str) -> int:
        """The step that "best", "latest" or a number means.

        Raises:
            UserError: There is no such checkpoint, or which is the best cannot be read.
        """
        known = {str(step): step for step in self.steps}
        means: dict[str, Callable[[], int | None]] = {
            "best": lambda: self.best,
            "latest": lambda: self.latest,
        }
        found = means[name]() if name in means else known.get(name)
        if found is not None:
            return found
        if name == "best" and known:
            raise UserError(
                f"{self._workdir} has no best checkpoint, because the run was never "
                "validated: pass --checkpoint=latest"
            )
        kept = ", ".join(known) or "none"
        raise UserError(
            f"--checkpoint={name}: {self._workdir} has no such checkpoint (steps kept: "
            f"{kept}); pass best, latest or one of these steps, or train first with: prosam train"
        )

    def _found(self) -> dict[int, pathlib.Path]:
        """Folders by step; of one step that was saved again the newest, which is whole."""
        found: dict[int, tuple[int, pathlib.Path]] = {}
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            if (name := _NAME.fullmatch(path.name)) and path.is_dir():
                step, time_saved = int(name[1]), int(name[2] or 1)
                found[step] = max(found.get(step, (0, path)), (time_saved, path))
        return {step: path for step, (_, path) in found.items()}

    def _problems(self) -> dict[int, str]:
        """What is wrong with each damaged checkpoint; UserError if there are no others."""
        found = self._found()
        problems = {step: _problem(folder) for step, folder in found.items()}
        damaged = {step: problem for step, problem in problems.items() if problem}
        if damaged and damaged.keys() == found.keys():
            told = "; ".join(f"{found[step]}: {problem}" for step, problem in damaged.items())
            raise UserError(
                f"{self._workdir} has no whole checkpoint to go on from ({told}): restore one from "
                "a copy, or choose another --workdir to begin again"
            )
        return damaged

    def _prune(self) -> None:
        found = self._found()
        kept = {found[step] for step in (self.latest, self.best) if step is not None}
        for path in list(self._folder.iterdir()):
            if _NAME.fullmatch(path.name) and path.is_dir() and path not in kept:
                # Renamed first: a folder that is half removed is not one that is damaged.
                shutil.rmtree(path.rename(path.with_name(f".{uuid.uuid4().hex}{PART}")))

    def _score(self, folder: pathlib.Path) -> float | None:
        try:
            return _older_score(folder) if _is_older(folder) else _sealed(folder)["miou"]
        except (OSError, ValueError) as error:
            raise self._damaged(folder, str(error)) from error

    def _verified(self, folder: pathlib.Path) -> pathlib.Path:
        if problem := _problem(folder):
            raise self._damaged(folder, problem)
        if _is_older(folder):
            console.note(f"checkpoint {folder} is of an older version, without checksums")
        return folder

    def _damaged(self, folder: pathlib.Path, problem: str) -> UserError:
        if not folder.exists():
            return UserError(f"checkpoint {folder} {_REPLACED}")
        whole = [step for step, path in self._found().items() if path != folder]
        whole = [str(step) for step in sorted(whole) if not _problem(self._found()[step])]
        mend = "no other is whole"
        if whole:
            mend = f"evaluate or export the whole one of step {whole[-1]}: --checkpoint={whole[-1]}"
        return UserError(f"checkpoint {folder} is damaged ({problem}); {mend}")

    def _check(self, folder: pathlib.Path, like: Any, stored: Any) -> None:
        held, wanted = _shapes(stored), _shapes(like)
        wrong = sorted(name for name in held | wanted if held.get(name) != wanted.get(name))
        if wrong:
            pairs = [
                f"{name} is {held.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
                for name in wrong[:8]
            ]
            raise UserError(
                f"checkpoint {folder} differs from the model in {len(wrong)} "
                f"arrays ({'; '.join(pairs)}): choose another --workdir, or the settings of its "
                "config.json"
            )

    def _check_arrays(self, folder: pathlib.Path, state: Any) -> None:
        if not _is_older(folder) and _sealed(folder)["arrays"] != _digest(state):
            raise self._damaged(folder, "its arrays are not those that were saved")

    def _check_space(self, size: int) -> None:
        # Orbax's threads write hundreds of lines to stderr when they meet a full disk.
        if (free := shutil.disk_usage(self._folder).free) < size:
            told = f"{os.strerror(errno.ENOSPC)}: it takes {size:,} bytes, {free:,} are free"
            raise OSError(errno.ENOSPC, told)


def _successor(path: pathlib.Path) -> str:
    """The name for the same step saved once more."""
    step, _, time_saved = path.name.partition("-")
    return f"{step}-{int(time_saved or 1) + 1}"


def _orbax() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


def _is_older(folder: pathlib.Path) -> bool:
    return (folder / _OLDER).is_dir()


def _arrays(folder: pathlib.Path) -> pathlib.Path:
    return folder / (_OLDER if _is_older(folder) else ARRAYS)


def _tree(folder: pathlib.Path) -> Any:
    """Shapes and dtypes of a checkpoint, in nested dicts."""
    with _muted():
        held = _orbax().metadata(_arrays(folder)).item_metadata
    if held is None:
        raise ValueError("no metadata of the arrays")
    return held.tree


def _read(folder: pathlib.Path, abstract: Any) -> Any:
    with _muted():
        return _orbax().restore(_arrays(folder), args=ocp.args.StandardRestore(abstract))


def _on_one_device(tree: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), tree)


def _seal(folder: pathlib.Path, step: int, state: Any, miou: float | None) -> None:
    """Writes `SEAL` beside the arrays, and has the system write all of it to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    held = {
        "step": step,
        "miou": miou,
        "arrays": _digest(state),
        "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
    }
    json_files.write_object(folder / SEAL, held | {"sha256": _own_digest(held)})
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sealed(folder: pathlib.Path) -> dict[str, Any]:
    """What `_seal` wrote.

    Raises:
        ValueError: The file is missing or damaged; the message says how, without its folder.
    """
    try:
        held = json_files.parse_object((folder / SEAL).read_bytes())
        if held.pop("sha256", None) != _own_digest(held):
            raise ValueError("its own checksum does not fit")
        files, miou = held.get("files"), held.get("miou", "")
        if not (
            isinstance(held.get("step"), int)
            and isinstance(held.get("arrays"), str)
            and (miou is None or isinstance(miou, float | int))
            and isinstance(files, dict)
            and all(isinstance(x, str) and ".." not in name for name, x in files.items())
        ):
            raise ValueError("it is not what this version writes")
    except ValueError as error:
        raise ValueError(f"{SEAL}: {error}") from error
    except OSError as error:
        raise ValueError(f"{SEAL}: {error.strerror}") from error
    return held


def _older_score(folder: pathlib.Path) -> float | None:
    path = folder / "metrics" / "metrics"
    if not path.exists():
        return None
    miou = json_files.parse_object(path.read_bytes()).get("miou")
    if not isinstance(miou, float | int):
        raise ValueError("metrics/metrics has no number miou")
    return miou


def _problem(folder: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint's files; None if nothing is."""
    try:
        if not _is_older(folder):
            held = _sealed(folder)
            if held["step"] != int(folder.name.partition("-")[0]):
                return f"it is of step {held['step']}"
            return _changed(folder, held["files"])
        _older_score(folder)
    except (OSError, ValueError) as error:
        return str(error)
    try:  # all that tells whether one without checksums can be read
        _read(folder, _on_one_device(_tree(folder)))
    except Exception as error:  # Orbax raises what it meets
        return f"Orbax cannot read it: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _changed(folder: pathlib.Path, files: Mapping[str, str]) -> str | None:
    for name, digest in files.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256(folder / name) != digest:
            return f"{name} was changed after it was written"
    return None


def _digest(tree: Any) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of all arrays, in the order of their names."""
    held = hashlib.sha256()
    for name, leaf in sorted(_leaves(tree).items()):
        array = np.ascontiguousarray(jax.device_get(leaf))
        held.update(f"{name} {array.dtype.name} {leaf.shape}\n".encode())
        held.update(array.view(np.uint8).data)
    return held.hexdigest()


def _own_digest(held: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


def _sync(path: pathlib.Path) -> None:
    """Has the system write a file or the names in a folder to the disk."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Keeps Orbax's threads, which print each error they meet, from writing to stderr."""
    if sys.stderr is None:  # closed; its number may be another file's
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    except Exception:
        time.sleep(2)  # TensorStore's threads go on for a moment, longer on a busy machine
        gc.collect()  # and what they left undone tells its errors when it is collected
        raise
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reason(error: Exception) -> str | None:
    """What the disk refused, None for other errors; Orbax's are of several types."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return next((os.strerror(x) for x in _DISK if os.strerror(x) in str(error)), None)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _leaves(tree).items()}


def _leaves(tree: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
