"""The error for everything that a user can fix, and text of others as it may be shown."""

import unicodedata


class UserError(ValueError):
    """A setting, file or argument is not valid.

    The message is one line: the value, what was expected and what to do. Commands print that line
    and exit with status 1. Any other error is a bug in this library and keeps its traceback.
    """


_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def printable(text: str) -> str:
    r"""A text of others in one line that steers no terminal: "\x1b[2J" shows as those characters.

    Control characters, line ends, characters that turn the direction of writing and what cannot be
    encoded are escaped; blanks of every width stay.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in _UNSEEN else c
        for c in text
    )
