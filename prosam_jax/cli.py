"""What the scripts share: flags, settings by name, and errors of one line."""

import itertools
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from prosam_jax.config import check_setting


def run(main: Callable[[], None]) -> NoReturn:
    """Parses the command line and runs `main`.

    What a user can mend (ValueError, FloatingPointError, a bad flag) ends as one line on stderr
    and exit status 1.
    """
    # Orbax warns at every checkpoint without a metric, of which there are many on purpose.
    logging.set_verbosity(logging.ERROR)
    try:
        app.run(_guarded(main), flags_parser=_parse)
    except (flags.Error, ValueError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """Ends the program with one message."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _guarded(main: Callable[[], None]) -> Callable[[Sequence[str]], None]:
    def guarded(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            fail(f"unexpected argument {argv[1]!r}; settings are given as --config.NAME=VALUE")
        try:
            main()
        except (ValueError, FloatingPointError) as error:
            fail(str(error))

    return guarded


def _parse(argv: Sequence[str]) -> list[str]:
    for argument in argv[1:]:
        if setting := re.match(r"--?(?:no)?config\.([\w.]+)", argument):
            check_setting(setting[1])
        elif file := re.match(r"--?config=(.+)", argument):
            _check_file(file[1])
    for flag, value in itertools.pairwise(argv):
        if flag in ("--config", "-config"):
            _check_file(value)
    return flags.FLAGS(argv)


def _check_file(path: str) -> None:
    if not pathlib.Path(path).is_file():
        known = ", ".join(map(str, sorted(pathlib.Path("configs").glob("*.py")))) or "none here"
        raise ValueError(f"--config={path}: there is no such file; configs: {known}")
