"""What the scripts share: flags, settings by name, and errors of one line."""

import functools
import itertools
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from prosam_jax.config import check_setting
from prosam_jax.errors import UserError

# Taken where --config is not given. Not as the flag's default, which ml_collections reads while the
# flag is being defined, before a wrong name could get a message of one line.
DEFAULT_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "pascal.py"


def run(
    main: Callable[[], None],
    config: pathlib.Path = DEFAULT_CONFIG,
    *,
    command: str | None = None,
) -> NoReturn:
    """Parses the command line and runs `main`.

    `config` is taken where --config is not given; `command`, if there is one, must be named first.

    What a user can mend (ValueError, FloatingPointError, OSError, a bad flag) ends as one line
    on stderr and exit status 1, Ctrl-C as one and 130.
    """
    # Orbax warns at every checkpoint without a metric, of which there are many on purpose.
    logging.set_verbosity(logging.ERROR)
    parse = functools.partial(_parse, config, command)
    app.run(_guarded(lambda argv: main()), flags_parser=_guarded(parse))
    sys.exit()  # not reached: app.run exits


def fail(message: str) -> NoReturn:
    """Ends the program with one message."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(argv: Sequence[str]) -> Any:
        try:
            return function(argv)
        except (flags.Error, ValueError, FloatingPointError, OSError) as error:
            absent = re.findall(r"flag (--\w+)=None: Flag", str(error))
            fail(f"missing: {', '.join(absent)}" if absent else str(error))
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(130)

    return guarded


def _parse(recipe: pathlib.Path, command: str | None, argv: Sequence[str]) -> list[str]:
    config = [value for flag, value in itertools.pairwise(argv) if flag in ("--config", "-config")]
    for argument in argv[1:]:
        if setting := re.match(r"--?(?:no)?config\.([\w.]+)", argument):
            check_setting(setting[1])
        elif file := re.match(r"--?config=(.+)", argument):
            config.append(file[1])
    for path in config:
        if not pathlib.Path(path).is_file():
            known = ", ".join(map(str, sorted(pathlib.Path("configs").glob("*.py")))) or "none here"
            raise UserError(f"--config={path}: there is no such file; configs: {known}")
    default = [] if config else [f"--config={recipe}"]
    name, *surplus = flags.FLAGS([argv[0], *default, *argv[1:]])
    if command is not None:
        if surplus[:1] != [command]:
            given = f"{surplus[0]!r} is no command" if surplus else "no command is given"
            raise UserError(f"{given}; the one there is: {command}")
        surplus = surplus[1:]
    if surplus:
        raise UserError(
            f"unexpected argument {surplus[0]!r}; flags are given as --NAME=VALUE, settings as "
            "--config.NAME=VALUE, each with one value"
        )
    return [name]
