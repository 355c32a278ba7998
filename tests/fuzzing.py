"""What the property tests share: any bytes give a result or one line, and soon."""

import datetime
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from prosam_jax.errors import UserError

TIMES = int(os.environ.get("FUZZ", "1"))
"""How many times as long as in `make test`, where each run tries the same."""


def examples(count):
    """Settings of a test that tries so many examples in `make test`."""
    return settings(
        max_examples=count * TIMES,
        deadline=datetime.timedelta(seconds=20),  # a hang, on the slowest machine
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def result_or_line(function, *arguments):
    """What the function returns; None if it says in one line what is wrong."""
    try:
        return function(*arguments)
    except UserError as error:
        assert "\n" not in str(error)
        return None


texts = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "\0", "~\0", "\ud800", "~\ud800", "[/b]", "$", "\x1b[2J", "a" * 5000]),
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 2**31, 2**63, 2**64, -1, 1e300]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def changed_values(draw, whole):
    """A nested value in which a few entries are others, more or fewer."""
    found = whole
    for _ in range(draw(st.integers(1, 3))):
        found = draw(_changed(found))
    return found


@st.composite
def _changed(draw, whole):
    if not isinstance(whole, dict) or not whole or draw(st.integers(0, 9)) == 0:
        return draw(values)
    found, name = dict(whole), draw(st.sampled_from(sorted(whole)))
    match draw(st.integers(0, 5)):
        case 0:
            del found[name]
        case 1:
            found[draw(texts | st.sampled_from(sorted(whole)))] = draw(values)
        case _:
            found[name] = draw(_changed(found[name]))
    return found


@st.composite
def changed_bytes(draw, whole):
    """Bytes of which a few are others, gone or doubled."""
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        match draw(st.integers(0, 4)):
            case 0:
                del found[at:]
            case 1:
                found[at:at] = draw(st.binary(max_size=9))
            case 2:
                found[at : at + 8] = draw(st.binary(min_size=8, max_size=8))
            case _:
                found[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
    return bytes(found)
