"""Values of flags that several verbs have."""

import argparse
import os
import pathlib


def as_text(given: str) -> str:
    """A text that is not empty, as that of a variable which is not set would be."""
    if not given.strip():
        raise argparse.ArgumentTypeError("its value is empty")
    return given


def as_path(given: str) -> pathlib.Path:
    """A path; `~` is the home folder, which a shell does not see to in --flag=~/folder."""
    return pathlib.Path(os.path.expanduser(as_text(given)))
