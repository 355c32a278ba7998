"""Reading, writing, changing and comparing settings."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from prosam_jax.config.checks import nearest
from prosam_jax.config.choices import HUB, PACKAGED, RANDOM
from prosam_jax.config.fields import Role, about, flat, leaves, unread
from prosam_jax.config.settings import Config
from prosam_jax.errors import UserError, cut, printable, short
from prosam_jax.json_files import read_object, write_object

DEEPEST = 8
"""How deeply settings may be nested, far more than they are."""

RENAMED = {"data.cueless": "data.empty_annotation"}
"""Former names of settings, as older files have them, and their current names."""


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested plain dicts, the inverse of `Config.from_dict`."""
    return dataclasses.asdict(config)


def write_config(cfg: Config, path: pathlib.Path) -> None:
    """Writes a run's settings as JSON."""
    write_object(path, to_dict(cfg))


def read_config(path: pathlib.Path) -> Config:
    """Reads the settings of a run from the `config.json` in its folder.

    Raises:
        UserError: There is no such file, or its settings are not valid.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing: pass the folder of a training run as --workdir, or restore the "
            "file if this is one"
        )
    mend = "restore it or start a new run"
    held = read_object(path, (), mend)
    try:
        return recorded(held)
    except UserError as error:
        raise UserError(f"{path} is damaged or of another version ({error}); {mend}") from error


def recorded(settings: object) -> Config:
    """Builds settings that this or an older version wrote.

    Former names are replaced by current ones; values that were set but not read are replaced by
    their defaults.

    Raises:
        UserError: As for `Config.from_dict`.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"{short(settings)} must be groups of settings")
    given = flat_mapping(settings)
    values = {RENAMED.get(name, name): value for name, value in given.items()}
    for former, name in RENAMED.items():
        if former in given and name in given:
            raise UserError(f"{name} is set twice, also by its former name {former}")
    for name, value in values.items():
        if any(x.startswith(f"{name}.") for x in leaves(Config)):
            raise UserError(f"{name}={short(value)} must be a group of settings")
        check_setting(name)
    known = {name: value for name, value in values.items() if name in leaves(Config)}
    everything = flat(Config()) | known
    for name in unread(Config, everything):
        values[name] = leaves(Config)[name].default
    return Config.from_dict(nested(values))


def replaced(cfg: Config, overrides: Mapping[str, Any]) -> Config:
    """The settings with new values by dotted name, such as {"eval.episodes": 10}.

    Other settings that are no longer read with the new values go back to their defaults.

    Raises:
        UserError: A name is unknown, or a new value is not valid or not read.
    """
    for name in overrides:
        check_setting(name)
    values = flat(cfg) | dict(overrides)
    for name in unread(Config, values):
        if name not in overrides:
            values[name] = leaves(Config)[name].default
    return Config.from_dict(nested(values))


def without_paths(cfg: Config) -> Config:
    """The settings with every path set to its default, except weights that are not a file."""
    default = flat(Config())
    paths = {
        name: default[name]
        for name, value in flat(cfg).items()
        if about(Config, name).role is Role.PATH
        and not (name.endswith(".weights") and value in (RANDOM, PACKAGED, HUB))
    }
    return replaced(cfg, paths)


def changed(old: Config, new: Config, may: Collection[Role] = ()) -> list[str]:
    """Settings that differ between two configurations although they must not.

    Args:
        old: Settings of a run.
        new: Settings with which the run is to be resumed or evaluated.
        may: Roles of settings that may differ. Even then, a weight file may move, but it may not
            replace random weights, nor may a file be added to or removed from `prompt.weights`;
            and unless the protocol may differ, a cache may do so only if it rounds alike.

    Returns:
        The settings, each as "name: old -> new".
    """
    before, after = flat(old), flat(new)
    free = {name for name in before if about(Config, name).role in may}
    if Role.PATH in may and Role.PROTOCOL not in may:
        cache = {"cache.dir", "cache.dtype"}
        free = free | cache if _embeddings(old) == _embeddings(new) else free - cache
    return [
        printable(f"{name}: {before[name]} -> {after[name]}")
        for name in before
        if before[name] != after[name]
        and not (name in free and _same_kind(name, before[name], after[name]))
    ]


def _same_kind(name: str, before: Any, after: Any) -> bool:
    return not (name.endswith(".weights") and {RANDOM, ""} & {before, after})


def _embeddings(cfg: Config) -> str:
    """The type of lowest precision that SAM's embeddings of the targets pass through."""
    exact = not cfg.cache.dir or cfg.cache.dtype == "float32"
    return cfg.sam.dtype if exact else cfg.cache.dtype


def names_of(roles: Collection[Role]) -> str:
    """The names of the settings with these roles, for messages."""
    return ", ".join(name for name in leaves(Config) if about(Config, name).role in roles)


def check_setting(name: str) -> None:
    """Raises UserError, naming the nearest known names, unless `name` is a setting."""
    if name in leaves(Config):
        return
    if name in RENAMED:
        raise UserError(f"unknown setting {name}: it is now called {RENAMED[name]}")
    if inside := [x for x in leaves(Config) if x.startswith(f"{name}.")]:
        raise UserError(f"unknown setting {name}: it is a group; set one of {', '.join(inside)}")
    group = name.rpartition(".")[0]
    known = [x for x in leaves(Config) if x.rpartition(".")[0] == group] or list(leaves(Config))
    raise UserError(f"unknown setting {cut(name)}{nearest(cut(name), known)}")


def flat_mapping(settings: Mapping[str, Any], prefix: str = "", depth: int = 1) -> dict[str, Any]:
    """Flattens nested settings to dotted names.

    Raises:
        UserError: A name is no text, or given twice, or they are nested too deeply.
    """
    if depth > DEEPEST:
        raise UserError(f"unknown setting {short(prefix)}: settings are nested too deeply")
    found = {}
    for name, value in settings.items():
        if not isinstance(name, str):
            raise UserError(
                f"unknown setting {cut(prefix)}{short(name)}: names of settings are text"
            )
        group = prefix + name not in leaves(Config)
        if group and (isinstance(value, Mapping) or hasattr(value, "items")):
            inner = flat_mapping(value, f"{prefix}{name}.", depth + 1)
        else:
            inner = {prefix + name: value}
        if twice := inner.keys() & found.keys():
            raise UserError(f"{cut(min(twice))} is set twice")
        found |= inner
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nests settings given by dotted name, the inverse of `flat_mapping`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        *groups, leaf = name.split(".")
        place = found
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return found
