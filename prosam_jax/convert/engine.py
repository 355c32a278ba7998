"""Conversion by a table of rules, strict both ways."""

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
    """Biases, gains, embeddings and tables, which both sides lay out alike."""
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
        targets: NNX path, with `\1` for the pattern's first group and so on. Several paths share
            the tensor: it is cut into equal parts along its first axis, in this order.
        transform: Changes torch's layout to flax's.
    """

    pattern: str
    targets: str | tuple[str, ...]
    transform: Callable[[np.ndarray], np.ndarray] = identity


@dataclasses.dataclass(frozen=True)
class Ignored:
    """Tensors that are left out knowingly: names that match `pattern`, for `reason`."""

    pattern: str
    reason: str


def convert(
    source: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    ignored: Sequence[Ignored],
    specs: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Renames and re-lays out a checkpoint's tensors.

    Args:
        source: Tensors by torch name.
        rules: Of which exactly one matches each tensor that is not ignored.
        ignored: Tensors to leave out.
        specs: Shape and type by NNX path, every one to be filled once (`weights.leaves` of an
            abstract module).

    Returns:
        Arrays by NNX path, views of the source.

    Raises:
        UserError: A tensor is unknown, matched by several rules, of another type than its path
            or not finite; a path is unknown, unfilled, filled twice or of another shape. All
            cases are in the one message.
    """
    problems: dict[str, list[str]] = collections.defaultdict(list)
    filled: dict[str, np.ndarray] = {}
    for name, array in source.items():
        if any(re.fullmatch(entry.pattern, name) for entry in ignored):
            continue
        matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, name))]
        if len(matches) != 1:
            group = "matched by several rules" if matches else "that no rule knows"
            problems[f"tensors {group}"].append(name)
            continue
        for path, part in _parts(*matches[0], array):
            if path in filled:
                problems["paths filled twice"].append(path)
            elif path not in specs:
                problems["paths that the model does not have"].append(f"{path} (from {name})")
            else:
                for group, entry in _misfits(name, path, part, specs[path]):
                    problems[group].append(entry)
            filled[path] = part
    unfilled = [path for path in specs if path not in filled]
    if unfilled:
        problems["paths left unfilled"] = unfilled
    if problems:
        raise UserError(f"the checkpoint does not fit the model\n{files.listing(problems)}")
    return filled


def filled(
    build: Callable[[nnx.Rngs], Any],
    source: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    ignored: Sequence[Ignored] = (),
) -> Any:
    """The module that `build` makes, with a checkpoint's tensors; errors as `convert`."""
    module = files.abstract(build)
    return files.fill(module, convert(source, rules, ignored, files.leaves(module)).__getitem__)


def _parts(rule: Rule, match: re.Match[str], array: np.ndarray) -> list[tuple[str, np.ndarray]]:
    targets = (rule.targets,) if isinstance(rule.targets, str) else rule.targets
    try:
        parts = [rule.transform(part) for part in np.split(array, len(targets))]
    except (ValueError, IndexError):
        # What a rule cannot lay out does not fit as it is either, and is reported by its shape.
        parts = [array] * len(targets)
    return [(match.expand(target), part) for target, part in zip(targets, parts, strict=True)]


def _misfits(name: str, path: str, array: np.ndarray, spec: Any) -> Iterator[tuple[str, str]]:
    if array.shape != spec.shape:
        yield "paths of another shape", f"{path} {spec.shape} from {name} {array.shape}"
    if array.dtype != spec.dtype:
        yield "tensors of another type", f"{name} is {array.dtype}, not {spec.dtype}"
    elif not np.isfinite(array).all():
        yield "tensors with NaN or infinity", name
