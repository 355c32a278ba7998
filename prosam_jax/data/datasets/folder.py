"""Episodes of a user's own pictures and masks; `folder_files` describes the folder."""

import csv
import dataclasses
import functools
import pathlib
import shlex
from collections.abc import Iterable, Mapping

from prosam_jax.config import DataConfig, check_choice
from prosam_jax.data.datasets.folder_check import Contents, check, stamps_of
from prosam_jax.data.datasets.folder_files import IMAGES, Folder, find_folder, lines, stem
from prosam_jax.data.episodes import EpisodeSource, episode_source
from prosam_jax.data.folds import FoldIndex, FoldRule
from prosam_jax.errors import UserError
from prosam_jax.picture_files import nfc

MIN_SHARE = 0.001
"""Smallest fraction of a picture with which it counts for a class: at 512 pixels about one cell of
stride 16."""

_FOLDS = 4


def own_episodes(
    cfg: DataConfig, split: str, *, seed: int, length: int | None = None
) -> EpisodeSource:
    """Episodes of a user's own folder, after reading all of its files once.

    A picture counts for a class that covers at least `MIN_SHARE` of it. In training it must have no
    pixel of a novel class, so both splits can use the same pictures.

    Args:
        cfg: Folder, novel classes or fold, lists, shots, image size, what to do with bad files.
        split: "train" or "test".
        seed: Seed of the draws.
        length: Number of episodes; None for one pass over the pictures.

    Raises:
        UserError: The folder is not valid, has bad files although `data.bad_files` is "stop", or
            has too few pictures for an episode.
    """
    folder = find_folder(cfg.root)
    contents = _contents(folder.path, folder.class_names, stamps_of(folder))
    if contents.faults and cfg.bad_files == "stop":
        command = "prosam prepare folder --check --root"
        raise UserError(
            f"data.root={cfg.root!r}: {contents.summary()} (list all with: {command} "
            f"{shlex.quote(cfg.root)}; leave them out with: data.bad_files=skip)"
        )
    n = len(contents.faults)
    skipped = f" ({n} bad file{'s' * (n > 1)} skipped)" if n else ""
    rule = fold_rule(folder.class_names, cfg.novel, f"{folder.path}{skipped}")
    setting = "train_list" if split == "train" else "val_list"
    ids = _listed(folder, getattr(cfg, setting), f"data.{setting}")
    shares = {i: contents.shares[i] for i in ids if i in contents.shares}
    fold = _index(rule, shares, cfg.fold, split).drawable(cfg.shots)
    if cfg.decode == "fast":
        folder = dataclasses.replace(folder, square=cfg.image_size)
    return episode_source(folder, fold, cfg, split, seed=seed, length=length)


def fold_rule(class_names: tuple[str, ...], novel: str, name: str) -> FoldRule:
    """The rule that decides which classes are kept for testing.

    Args:
        class_names: Names of all classes.
        novel: Names of the novel ones, separated by commas, as a line of CSV: a name with a comma
            is in double quotes. "" for every fourth class, starting from class 1 + fold.
        name: Name of the rule.

    Raises:
        UserError: A novel class is unknown.
    """
    if not novel:
        ids = range(1, 1 + len(class_names))
        novel_of = tuple(tuple(ids[f::_FOLDS]) for f in range(_FOLDS))
        return FoldRule(name, class_names, novel_of, own=True)
    try:
        wanted = [nfc(x.strip()) for x in next(csv.reader([novel], skipinitialspace=True))]
    except csv.Error as error:
        raise UserError(f"data.novel={novel!r} is not a line of CSV ({error})") from error
    for part in wanted:
        if commas := [x for x in class_names if part not in class_names and part in x.split(",")]:
            raise UserError(
                f"data.novel={novel!r}: put the name {commas[0]!r}, which has a comma, in double "
                "quotes"
            )
        check_choice("data.novel", part, class_names)
    chosen = tuple(sorted({class_names.index(part) + 1 for part in wanted}))
    return FoldRule(name, class_names, (chosen,) * _FOLDS, own=True)


@functools.lru_cache(maxsize=1)
def _contents(path: pathlib.Path, class_names: tuple[str, ...], stamps: tuple) -> Contents:
    """The result of `check`, cached because a run needs it twice and reading takes minutes."""
    return check(find_folder(str(path)))


def _index(
    rule: FoldRule, shares: Mapping[str, Mapping[int, float]], fold: int, split: str
) -> FoldIndex:
    classes = rule.classes(fold, split)
    if not classes:
        raise UserError(
            f"data.fold={fold}: none of the {len(rule.class_names)} classes is left for the "
            f"{split} split; name some for testing in data.novel, not all, or choose another fold"
        )
    barred = () if split == "test" else rule.novel[fold]
    ids = sorted(i for i, shown in shares.items() if not any(c in shown for c in barred))
    large = {c: tuple(i for i in ids if shares[i].get(c, 0) >= MIN_SHARE) for c in classes}
    return FoldIndex(rule, fold, split, large)


def _listed(folder: Folder, name: str, setting: str) -> Iterable[str]:
    """The pictures of a list, named with or without their suffix; all pictures for the list ""."""
    if not name:
        return folder.masks
    path = folder.path / f"{name}.txt"
    if not path.is_file():
        raise UserError(f"{setting}={name!r}: there is no {path}; write a picture per line into it")
    known = {stem(i): i for i in folder.masks} | {nfc(i): i for i in folder.masks}
    names = lines(path)
    if missing := [line for line in names if line not in known]:
        raise UserError(
            f"{setting}={name!r}: {path} names {len(missing)} pictures that are not in "
            f"{folder.path / IMAGES}, such as {missing[0]!r}; correct the list"
        )
    return dict.fromkeys(known[line] for line in names)
