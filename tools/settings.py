"""Writes docs/settings.md: every setting, from the dataclasses of `prosam_jax.config`.

Run it with `python -m tools.settings`.
"""

import dataclasses
import inspect
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from prosam_jax.config import CHANGES_NO_NUMBER, OF_AN_EVALUATION, Config, Role
from prosam_jax.config.fields import About, Group, about, choices

OUT = pathlib.Path("docs/settings.md")

GOES_ON = {Role.LENGTH: "yes, unless `train.schedule=cosine`"}
BEGINS = {
    Role.ARCHITECTURE: "no",
    Role.BENCHMARK: "yes, but on the same benchmark `data.fold` and `data.novel` stay, "
    "and on another no class that the file was trained on is tested",
}
"""Rules of `training.loop` and `weights.prompt_encoder` that the sets of roles do not contain."""


def page() -> str:
    """The whole document."""
    cfg = Config()
    inner = [x for x in dataclasses.fields(Config) if isinstance(getattr(cfg, x.name), Group)]
    groups = [_group(type(getattr(cfg, x.name)), x.name) for x in inner]
    return TEXT.format(
        roles="\n".join(_role(role) for role in Role), groups="\n\n".join([_whole(), *groups])
    )


def described(cls: type) -> dict[str, str]:
    """The "Attributes:" of a dataclass's docstring by name, each in one line."""
    _, _, text = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in entries}


def values(kind: Any, about: About) -> str:
    """The values that a setting takes."""
    if known := choices(kind):
        return ", ".join(f"`{x}`" for x in known)
    if kind is bool:
        return "`true`, `false`"
    if kind is str:
        return "a path" if about.role is Role.PATH else "text"
    limits = (
        ("at least", about.least),
        ("at most", about.most),
        ("above", about.above),
        ("below", about.below),
    )
    parts = [f"{word} {limit:,}" for word, limit in limits if limit is not None]
    return ", ".join(["a whole number" if kind is int else "a number", *parts])


def _whole() -> str:
    rows = [_row(Config, x) for x in dataclasses.fields(Config) if "about" in x.metadata]
    return "\n".join(["## The whole run", "", *HEAD, *rows])


def _group(cls: type[Group], name: str) -> str:
    title = (inspect.getdoc(cls) or "").partition("\n")[0]
    rows = [_row(cls, field) for field in dataclasses.fields(cls)]
    return "\n".join([f"## {name}", "", title, "", *HEAD, *rows])


def _row(cls: type[Group], field: dataclasses.Field[Any]) -> str:
    name = cls.PREFIX + field.name
    says = about(Config, name)
    what = described(cls)[field.name].replace("|", "\\|")
    default = str(field.default).lower() if field.type is bool else field.default
    cells = (
        f"`{name}`",
        '`""`' if default == "" else f"`{default}`",
        values(field.type, says),
        says.role.name.lower(),
        f"{what} {_read_with(says)}".strip(),
    )
    return f"| {' | '.join(cells)} |"


def _read_with(about: About) -> str:
    if about.read_with is None:
        return ""
    other, needed = about.read_with
    if needed is None:
        return f"Read only where `{other}` is set."
    return f"Read only where `{other}` is {_alternatives([f'`{x}`' for x in needed])}."


def _alternatives(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _role(role: Role) -> str:
    cells = (
        f"**{role.name.lower()}**",
        role.value,
        GOES_ON.get(role, _yes(role in CHANGES_NO_NUMBER)),
        _yes(role in OF_AN_EVALUATION),
        BEGINS.get(role, "yes"),
    )
    return f"| {' | '.join(cells)} |"


def _yes(may: bool) -> str:
    return "yes" if may else "no"


HEAD = ("| setting | default | values | role | what it is |", "|---|---|---|---|---|")

TEXT = """# Settings

Written by `python -m tools.settings` from [`prosam_jax/config`](../prosam_jax/config/settings.py).

On the command line, set one with `--config.NAME=VALUE`:

```
prosam train --config pascal --config.data.root=VOC2012 --config.data.fold=1 --workdir runs/p1
```

`--config` names a recipe: one of [`configs/`](../configs) by name, or your own Python file whose
`get_config()` returns a dict. A recipe holds only what differs from the defaults below, or from
those of another recipe that it names, as in `BASE = "pascal"`; the command line overrides it. In
Python, `Config.from_dict` takes the same settings as nested dicts.

An unknown name or value ends the command with a message that names the nearest known ones. So does
a setting that nothing would read, such as `distribution.nu` with `distribution.name=gaussian`.

## What may change, and when

Every setting has a role, and the role says when it may change:

| role | what it is for | a run goes on | an evaluation | training begins from a file |
|---|---|---|---|---|
{roles}

* *A run goes on*: `prosam train` with the run's folder as `--workdir`.
* *An evaluation*: `prosam evaluate` of a run (`--workdir`) or of a prompt encoder's file
  (`--prompt-encoder`). A file that does not record its fold may be scored on any fold, and one
  trained on your own pictures may be scored on another folder; the benchmark's settings may change
  then, too.
* *Training begins from a file*: `prosam train` with `--prompt-encoder`.
* `prosam segment` and `from_pretrained` take fewer: `data.downsample`, and the settings of `sam`
  and `backbone` that do not belong to the architecture.

A weight file may be elsewhere (its role is path), but it must hold the weights of the training:
checksums are compared. Random weights never replace those of a file, nor the other way round.
When a run goes on, the settings of `cache` may change if the cache rounds SAM's
embeddings as before.

{groups}
"""


def main() -> None:
    """Writes the document."""
    OUT.write_text(page())
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
