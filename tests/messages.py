"""What every message about a mistake must be: one line that names what is wrong."""


def check_line(error, *named):
    """Checks the message of an exception that pytest caught."""
    message = str(error.value)
    assert "\n" not in message, message
    for text in named:
        assert str(text) in message
