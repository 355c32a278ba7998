"""Checks of single values; the messages name the value and the nearest known ones."""

import difflib
from collections.abc import Iterable

from prosam_jax.errors import UserError, cut, short


def check_choice(setting: str, value: object, known: Iterable[object]) -> None:
    """Raises UserError, naming the nearest known values, unless `value` is one of `known`."""
    known = tuple(known)
    if value not in known:
        near = nearest(cut(str(value)), map(str, known))
        raise UserError(f"{setting}={short(value)} is not known{near}")


def check_at_least(setting: str, value: float, least: float) -> None:
    """Raises UserError unless `value >= least`."""
    if not value >= least:
        raise UserError(f"{setting}={short(value)} must be at least {least}")


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the most similar known names, or all of them."""
    known = sorted(known)
    of_small = {x.casefold(): x for x in known}
    near = difflib.get_close_matches(name.casefold(), of_small, n=3, cutoff=0.5)
    if near:
        return f"; nearest: {', '.join(of_small[x] for x in near)}"
    return f"; known: {', '.join(known)}" if known else ""
