"""docs/settings.md says of every setting what the code says of it."""

import pathlib

from prosam_jax.config import Config, Role
from prosam_jax.config.fields import About, leaves
from tools import settings

PAGE = pathlib.Path(__file__).parents[1] / "docs/settings.md"


def test_the_committed_page_is_the_one_that_the_tool_makes():
    assert settings.page() == PAGE.read_text(), "write it anew: python -m tools.settings"


def test_every_setting_has_one_row():
    page = PAGE.read_text()
    for name in leaves(Config):
        assert page.count(f"\n| `{name}` |") == 1, name


def test_ranges_and_choices_are_said():
    about = About(Role.TRAINING, least=0, below=1)
    assert settings.values(float, about) == "a number, at least 0, below 1"
    about = About(Role.SPEED, least=0, most=4096)
    assert settings.values(int, about) == "a whole number, at least 0, at most 4,096"
    assert settings.values(bool, about) == "`true`, `false`"
    row = next(x for x in PAGE.read_text().splitlines() if x.startswith("| `data.fold` |"))
    assert "| `0`, `1`, `2`, `3` | benchmark |" in row
