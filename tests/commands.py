"""Commands as a user calls them, in this process or in one of their own."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

from prosam_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),  # `python -m prosam_jax` from any folder
}
PROSAM = [sys.executable, "-m", "prosam_jax"]


def status_of(*arguments):
    """The exit status of `prosam ARGUMENTS`, run in this process."""
    try:
        return cli.main([str(x) for x in arguments])
    except SystemExit as end:
        return end.code


def run(*command, cwd=ROOT, **environment):
    """A process: its exit status, stdout and stderr."""
    return subprocess.run(
        [str(x) for x in command],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def one_line(text, *named):
    """Whether an error is a line that names all of this."""
    assert text.startswith("error: ") and text.count("\n") == 1, text
    for name in named:
        assert str(name) in text


def examples(text, program="prosam"):
    """The command lines in a help text, without the program's name."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line) for line in lines if re.match(rf" +{program} ", line)]
    return [words[len(program.split()) :] for words in found]
