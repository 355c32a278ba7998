"""Metadata of settings: each field has a role, a range and the condition under which it is read.

The roles alone decide what may change when a run is resumed or evaluated, when its prompt encoder
is used elsewhere, and when runs are compared.
"""

import dataclasses
import enum
import functools
import math
import os
import typing
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from prosam_jax.config.checks import check_at_least, check_choice
from prosam_jax.errors import UserError, short


class Role(enum.Enum):
    """What a setting is for."""

    ARCHITECTURE = "the shape of the learned parameters, and what they mean"
    BENCHMARK = "which classes are trained on, and which are kept for testing"
    TRAINING = "how the parameters are learned"
    LENGTH = "how long training takes"
    PROTOCOL = "how episodes are made and scored"
    PATH = "where files are"
    SPEED = "time and memory"
    REPORT = "what is logged, saved and drawn"


CHANGES_NO_NUMBER = frozenset({Role.PATH, Role.SPEED, Role.REPORT})
"""Roles of settings that do not affect the result of a run."""

OF_AN_EVALUATION = CHANGES_NO_NUMBER | {Role.PROTOCOL}
"""Roles of settings that may change when a trained model is evaluated or used."""

ReadWith = tuple[str, tuple[object, ...] | None]
"""A setting's name and the values of it with which another setting is read; None: any but ""."""


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
"""What values of a type are called in messages."""


@dataclasses.dataclass(frozen=True)
class About:
    """Metadata of a field.

    Attributes:
        role: What the setting is for.
        least: Smallest allowed value.
        most: Largest allowed value. Every whole number has one, far above what is of use, because
            settings come from others' files as well.
        above: The value must be greater than this.
        below: The value must be less than this.
        read_with: Another setting, and the values of it with which this one is read; None for
            always.
    """

    role: Role
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    read_with: ReadWith | None = None


def setting(default: Any, role: Role, **about: Any) -> Any:
    """A dataclass field with a default; `about` has the other attributes of `About`."""
    return dataclasses.field(default=default, metadata={"about": About(role, **about)})


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of settings; types, choices and ranges are checked on construction."""

    PREFIX: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Raises UserError if a value has the wrong type or is out of range."""
        for field in dataclasses.fields(self):
            kind: Any = field.type
            if dataclasses.is_dataclass(kind):
                continue
            name, value = self.PREFIX + field.name, getattr(self, field.name)
            checked, about = _typed(name, value, kind), field.metadata.get("about")
            if about and about.role is Role.PATH:
                checked = _expanded(name, checked)
            if checked is not value:
                object.__setattr__(self, field.name, checked)
            if about:
                _check_range(name, checked, about)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Makes a group from values whose types are only known at run time."""
        return cls(**values)


def choices(kind: Any) -> tuple[Any, ...]:
    """The values of a `Literal` type; empty for other types."""
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def flat(group: Group) -> dict[str, Any]:
    """The values of a group and its subgroups, by dotted name."""
    found = {}
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        if isinstance(value, Group):
            found |= flat(value)
        else:
            found[group.PREFIX + field.name] = value
    return found


@functools.cache
def leaves(cls: type[Group]) -> Mapping[str, dataclasses.Field[Any]]:
    """The fields of a group and its subgroups, by dotted name."""
    found = {}
    for field in dataclasses.fields(cls):
        kind: Any = field.type
        found |= (
            leaves(kind) if dataclasses.is_dataclass(kind) else {cls.PREFIX + field.name: field}
        )
    return found


def about(cls: type[Group], name: str) -> About:
    """The metadata of the field with this dotted name."""
    return leaves(cls)[name].metadata["about"]


def unread(cls: type[Group], values: Mapping[str, Any]) -> dict[str, str]:
    """Settings that are not at their defaults although the other settings make them unread.

    Args:
        cls: The class of all settings.
        values: All values, by dotted name.

    Returns:
        For each such setting, by dotted name, a message that says why.
    """
    found = {}
    for name, field in leaves(cls).items():
        read_with = field.metadata["about"].read_with
        if read_with is None or values[name] == field.default:
            continue
        other, needed = read_with
        if values[other] not in needed if needed is not None else not values[other]:
            wanted = "set" if needed is None else " or ".join(map(str, needed))
            found[name] = (
                f"{name}={values[name]!r} is read only with {other}={wanted}, and {other} is "
                f"{values[other]!r}: leave {name} out, or change {other}"
            )
    return found


def _expanded(name: str, path: str) -> str:
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise UserError(f"{name}={short(path)} must be a path that can be encoded") from None
    if "\0" in path:
        raise UserError(f"{name}={short(path)} must be a path without a null character")
    return os.path.expanduser(path)


def _typed(name: str, value: Any, kind: Any) -> Any:
    if known := choices(kind):
        if type(value) is not type(known[0]):
            raise UserError(f"{name}={short(value)} must be {KINDS[type(known[0])]}")
        check_choice(name, value, known)
        return value
    if kind is float and type(value) is int:
        return float(value) if abs(value) < 1 << 1000 else math.inf  # which the range refuses
    if kind in (bool, int, float, str) and type(value) is not kind:
        raise UserError(f"{name}={short(value)} must be {KINDS[kind]}")
    return value


def _check_range(name: str, value: Any, about: About) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={short(value)} must be a finite number")
    if about.least is not None:
        check_at_least(name, value, about.least)
    if about.most is not None and value > about.most:
        raise UserError(f"{name}={short(value)} must be at most {about.most}")
    if about.above is not None and value <= about.above:
        raise UserError(f"{name}={short(value)} must be above {about.above}")
    if about.below is not None and value >= about.below:
        raise UserError(f"{name}={short(value)} must be below {about.below}")
