"""Conversion by a table of rules: every tensor must be used and every array filled."""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from prosam_jax.errors import UserError
from prosam_jax.weights import files


def identity(x: np.ndarray) -> np.ndarray:
    """Biases, gains, embeddings and tables, which have the same layout on both sides."""
    return x


def linear(x: np.ndarray) -> np.ndarray:
    """Linear weight: (out, in) to (in, out)."""
    return x.transpose(1, 0)


def conv(x: np.ndarray) -> np.ndarray:
    """Convolution weight: (out, in, h, w) to (h, w, in, out)."""
    return x.transpose(2, 3, 1, 0)


def conv_transpose(x: np.ndarray) -> np.ndarray:
    """Transposed convolution weight: (in, out, h, w) to (h, w, out, in)."""
    return x.transpose(2, 3, 1, 0)


def pointwise(x: np.ndarray) -> np.ndarray:
    """Weight of a 1 x 1 convolution that is a linear layer here: (out, in, 1, 1) to (in, out)."""
    return x.squeeze((2, 3)).transpose(1, 0)


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""Where tensors of a torch module go.

    Attributes:
        pattern: Regular expression that a tensor's whole name matches.
        targets: NNX path, with `\1` for the pattern's first group and so on. With several
            paths, the tensor is split into equal parts along its first axis, in this order.
        transform: Changes torch's layout to flax's.
        part: (i, n) if the transformed tensor is the i-th of n equal parts of its path's array,
            along the last axis; None if it is the whole.
    """

    pattern: str
    targets: str | tuple[str, ...]
    transform: Callable[[np.ndarray], np.ndarray] = identity
    part: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Tensors left out on purpose: names that match `pattern`, for `reason`."""

    pattern: str
    reason: str


def convert(
    source: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    ignored: Sequence[Ignored],
    specs: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Renames a checkpoint's tensors and changes their layout.

    Args:
        source: Tensors by torch name.
        rules: Exactly one must match each tensor that is not ignored.
        ignored: Tensors to leave out.
        specs: Shape and type by NNX path, each to be filled once (`weights.files.leaves` of an
            abstract module).

    Returns:
        Arrays by NNX path, views of the source except for those of several parts.

    Raises:
        UserError: A tensor is unknown, matched by several rules, of another type than its path
            or not finite; a path is unknown, unfilled, filled twice or of another shape. One
            message lists all cases.
    """
    problems: dict[str, list[str]] = collections.defaultdict(list)
    filled: dict[str, np.ndarray] = {}
    parts: dict[str, dict[tuple[int, int], np.ndarray]] = collections.defaultdict(dict)
    for name, array in source.items():
        if any(re.fullmatch(entry.pattern, name) for entry in ignored):
            continue
        matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, name))]
        if len(matches) != 1:
            group = "matched by several rules" if matches else "that no rule knows"
            problems[f"tensors {group}"].append(name)
            continue
        rule = matches[0][0]
        for path, part in _parts(*matches[0], array):
            if path in filled or rule.part in parts.get(path, ()):
                problems["paths filled twice"].append(path)
            elif path not in specs:
                problems["paths that the model does not have"].append(f"{path} (from {name})")
            else:
                for group, entry in _misfits(name, path, part, specs[path], rule.part):
                    problems[group].append(entry)
            if rule.part:
                parts[path][rule.part] = part
            else:
                filled[path] = part
    for path, found in parts.items():
        if path in filled:
            problems["paths filled twice"].append(path)
        elif len(found) == next(iter(found))[1]:
            filled[path] = np.empty(0) if problems else _joined(found)
    unfilled = [path for path in specs if path not in filled]
    if unfilled:
        problems["paths left unfilled"] = unfilled
    if problems:
        raise UserError(f"the checkpoint does not fit the model: {files.listing(problems)}")
    return filled


def filled(
    build: Callable[[nnx.Rngs], Any],
    source: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    ignored: Sequence[Ignored] = (),
) -> Any:
    """The module that `build` makes, filled with a checkpoint's tensors; errors as in `convert`."""
    module = files.abstract(build)
    return files.fill(module, convert(source, rules, ignored, files.leaves(module)).__getitem__)


def _parts(rule: Rule, match: re.Match[str], array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    targets = (rule.targets,) if isinstance(rule.targets, str) else rule.targets
    try:
        parts = [rule.transform(part) for part in np.split(array, len(targets))]
    except (ValueError, IndexError):
        # A tensor that a rule cannot transform has the wrong shape, which is reported below.
        parts = [array] * len(targets)
    return [(match.expand(target), part) for target, part in zip(targets, parts, strict=True)]


def _joined(parts: Mapping[tuple[int, int], np.ndarray]) -> np.ndarray:
    return np.concatenate([parts[key] for key in sorted(parts)], axis=-1)


def _misfits(
    name: str, path: str, array: np.ndarray, spec: Any, part: tuple[int, int] | None
) -> Iterator[tuple[str, str]]:
    shape = spec.shape if part is None else (*spec.shape[:-1], spec.shape[-1] // part[1])
    if array.shape != shape:
        yield "paths of another shape", f"{path} {shape} from {name} {array.shape}"
    if array.dtype != spec.dtype:
        yield "tensors of another type", f"{name} is {array.dtype}, not {spec.dtype}"
    elif not np.isfinite(array).all():
        yield "tensors with NaN or infinity", name
