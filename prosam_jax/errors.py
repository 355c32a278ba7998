"""The one kind of error that a user can mend."""


class UserError(ValueError):
    """A setting, a file or an argument that is not as it must be.

    Its message is one line: the value, what was expected, and what to do. Commands print that line
    and end with status 1. Any other error is a fault of this library, and keeps its traceback.
    """
