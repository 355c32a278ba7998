"""Settings on the command line: `--config RECIPE` and `--config.GROUP.NAME=VALUE`."""

import argparse
import os
import pathlib
import re
import runpy
import traceback
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import prosam_jax
from prosam_jax.cli.arguments import as_text
from prosam_jax.config import Config, check_setting, flat_mapping, replaced
from prosam_jax.config.checks import nearest
from prosam_jax.config.fields import KINDS, choices, leaves
from prosam_jax.errors import UserError, cut, short

_SETTING = re.compile(r"--?(no)?config\.([\w.]+)(?:=(.*))?", re.DOTALL)
_WORDS = {"true": True, "t": True, "1": True, "yes": True}
_WORDS |= {"false": False, "f": False, "0": False, "no": False}


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates other arguments from settings, which become `--config.NAME=VALUE`.

    Raises:
        UserError: A setting is unknown, has no value, or wrongly begins with `no`.
    """
    rest, given = [], []
    i = 0
    while i < len(argv):
        match = _SETTING.fullmatch(argv[i])
        if match is None:
            rest.append(argv[i])
        else:
            no, name, value = match.groups()
            check_setting(name)
            if value is None and leaves(Config)[name].type is bool:
                value = "false" if no else "true"
            elif no:
                raise UserError(f"{cut(argv[i])}: only settings that are true or false take `no`")
            elif value is None:  # in an argument of its own
                i += 1
                value = argv[i] if i < len(argv) else "--"
                if value.startswith("--"):  # the next flag; a number may begin with one "-"
                    raise UserError(f"{argv[i - 1]} has no value: pass {argv[i - 1]}=VALUE")
            given.append(f"--config.{name}={value}")
        i += 1
    return rest, given


def parse(given: Sequence[str]) -> dict[str, Any]:
    """Values by dotted name, converted to the types of the settings.

    Args:
        given: Arguments of the form `--config.NAME=VALUE`, as `split` returns them.

    Raises:
        UserError: A value cannot be converted.
    """
    found = {}
    for argument in given:
        name, _, text = argument.removeprefix("--config.").partition("=")
        found[name] = _value(name, text)
    return found


def _value(name: str, text: str) -> Any:
    kind: Any = leaves(Config)[name].type
    if known := choices(kind):
        kind = type(known[0])
    if kind is str:
        return text
    try:
        return _WORDS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise UserError(f"{name}={short(text)} must be {KINDS[kind]}") from None


def add_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Adds `--config`, whose help ends with `default`, and lets the verb take settings."""
    parser.add_argument(
        "--config",
        type=as_text,
        metavar="RECIPE",
        help=f"name of a recipe ({', '.join(recipes())}) or file of your own; {default}",
    )
    parser.add_argument(
        "--config.GROUP.NAME",
        dest="_shown",
        metavar="VALUE",
        help="any setting, such as --config.data.fold=1; docs/settings.md lists them all",
    )
    parser.set_defaults(takes_settings=True)


def recipes() -> dict[str, pathlib.Path]:
    """The recipes that come with the library, by name."""
    package = pathlib.Path(prosam_jax.__file__).parent
    # An installed package contains the recipes; in a clone they are beside the package.
    folder = next(x for x in (package / "configs", package.parent / "configs") if x.is_dir())
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def recipe(name: str, above: Sequence[str] = ()) -> dict[str, Any]:
    """The settings of a recipe, by dotted name.

    Args:
        name: A name from `recipes`, or the path of a Python file with a function `get_config` that
            returns a dict or ConfigDict of groups of settings. The file may name another recipe,
            `BASE = "pascal"`, for the settings that it does not give itself.
        above: The recipes that have this one below them.

    Raises:
        UserError: There is no such recipe, its `get_config` is missing or does not return a dict,
            a setting is unknown, or its base is no recipe or has this one as its own base.
    """
    known = recipes()
    path = known.get(name, pathlib.Path(os.path.expanduser(name)))
    chain = [*above, name]
    told = f"--config={' -> '.join(chain)}"  # each is the base of the one before
    if name in above:
        raise UserError(f"{told}: a recipe cannot be its own BASE; name another one, or none")
    if not path.is_file():
        raise UserError(f"{told}: there is no such recipe or file{nearest(name, known)}")
    try:
        base, values = _read(path)
    except UserError as error:
        raise UserError(f"{told}: {error}") from error
    except Exception as error:  # the file is the user's, and so is what is wrong in it
        raise UserError(
            f"{told}: {_told(error, path)}; a recipe is a "
            "Python file with a function get_config() that returns a dict of settings"
        ) from error
    for setting in values:
        check_setting(setting)
    return (recipe(base, chain) if base else {}) | values


def _read(path: pathlib.Path) -> tuple[str, dict[str, Any]]:
    """The base of a recipe, "" for none, and its own settings."""
    found = runpy.run_path(str(path))
    get_config, base = found.get("get_config"), found.get("BASE", "")
    if not callable(get_config):
        raise UserError(f"{path} has no function get_config()")
    if not isinstance(base, str):
        raise UserError(f"BASE = {short(base)} must be the name of another recipe")
    groups = get_config()
    if not (isinstance(groups, Mapping) or hasattr(groups, "items")):
        raise UserError(f"get_config() returns {type(groups).__name__}: return a dict")
    return base, flat_mapping(typing.cast(Mapping[str, Any], groups))


def _told(error: Exception, path: pathlib.Path) -> str:
    """What went wrong in a recipe, with its line where there is one."""
    if isinstance(error, SyntaxError):
        line, what = error.lineno, error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        line = next((x.lineno for x in reversed(frames) if x.filename == str(path)), None)
        what = str(error)
    return f"{f'line {line}: ' if line else ''}{type(error).__name__}: {what}"


def changes(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of the recipe and the command line, which wins, by dotted name."""
    return ({} if args.config is None else recipe(args.config)) | args.overrides


def config(args: argparse.Namespace, default: str = "") -> Config:
    """The settings of a recipe with the changes of the command line.

    Args:
        args: The parsed command line.
        default: The recipe to use if none is named; "" for the default settings.

    Raises:
        UserError: A setting is unknown, not valid, or not read with the others.
    """
    name = default if args.config is None else args.config
    base = replaced(Config(), recipe(name)) if name else Config()
    return replaced(base, args.overrides)
