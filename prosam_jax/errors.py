"""The error for everything that a user can fix, and text of others as it may be shown."""

import unicodedata


class UserError(ValueError):
    """A setting, file or argument is not valid.

    The message is one line: the value, what was expected and what to do. Commands print that line
    and exit with status 1. Any other error is a bug in this library and keeps its traceback.
    """


_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str, keep: str = "") -> str:
    r"""A text of others in one line that steers no terminal: "\x1b[2J" shows as those characters.

    Control characters, line ends, characters that turn the direction of writing and what cannot be
    encoded are escaped, except those in `keep`; blanks of every width stay.
    """
    return "".join(
        c.encode("unicode_escape").decode()
        if unicodedata.category(c) in _UNSEEN and c not in keep
        else c
        for c in text
    )


LONGEST = 100


def cut(text: str) -> str:
    """A text of others for a message, `printable` and cut after `LONGEST` characters."""
    return printable(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")


def short(value: object) -> str:
    """A value of others for a message: its `repr`, cut."""
    try:
        return cut(repr(value))
    except (RecursionError, ValueError):  # nested too deeply; a number of too many digits
        return f"a {type(value).__name__}"
