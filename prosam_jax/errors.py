"""The error for everything that a user can fix."""


class UserError(ValueError):
    """A setting, file or argument is not valid.

    The message is one line: the value, what was expected and what to do. Commands print that line
    and exit with status 1. Any other error is a bug in this library and keeps its traceback.
    """
