"""Files of trained prompt encoders, with everything needed to use them.

Such a file is a weight file of kind "prompt_encoder" whose metadata has the fields of `Trained`.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jaxtyping import Array

from prosam_jax.config import (
    RANDOM,
    Config,
    Role,
    recorded,
    without_paths,
)
from prosam_jax.config.fields import about, flat
from prosam_jax.errors import UserError, printable
from prosam_jax.json_files import read_object, write_object
from prosam_jax.weights import files

KIND = "prompt_encoder"
MADE_BY = "prosam export --workdir=RUN --out=FILE (or prosam weights pull, or convert vrp-sam)"
FROZEN = "frozen.json"
DATASET = "dataset.json"
Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    """Whether this is a name of this library's, which messages show as it is."""
    return isinstance(value, str) and len(value) <= 200 and value == printable(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _is_percentage(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _holds(value: Any, checks: Mapping[str, Check]) -> bool:
    """Whether this is an object of exactly these entries, each of which is valid."""
    return (
        isinstance(value, dict)
        and value.keys() == checks.keys()
        and all(check(value[name]) for name, check in checks.items())
    )


def _names_weights(value: Any) -> bool:
    return any(
        _holds(value, {"architecture": _is_name} | source)
        for source in ({"seed": _is_count}, {"arrays_sha256": _or_none(_is_sha256)})
    )


def _names_frozen(value: Any) -> bool:
    return _holds(value, {"sam": _names_weights, "backbone": _names_weights})


def _are_ious(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_percentage, value.values()))


SCORES: dict[str, Check] = {
    "miou": _is_percentage,
    "fb_iou": _is_percentage,
    "per_class": _are_ious,
    "episodes": _is_count,
    "episode_list_sha256": _is_sha256,
}
"""Scores that a file tells, named as in `results.json`, and what they must be."""

CHECKS: dict[str, Check] = {
    "config": lambda value: isinstance(value, dict),  # `recorded` looks into it
    "merged_channels": lambda value: _is_count(value) and 0 < value <= 1 << 16,
    "frozen": _names_frozen,
    "version": _is_name,
    "benchmark": _or_none(_is_name),
    "classes": _or_none(_are_names),
    "fold": _or_none(_is_count),
    "step": _or_none(_is_count),
    "results": _or_none(lambda value: _holds(value, SCORES | {"settings": _are_names})),
    "source_name": _or_none(_is_text),
    "source_sha256": _or_none(_is_sha256),
}
"""What each field of `Trained` must be; the file may come from anyone."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a file says about its prompt encoder; None for what is not known.

    Attributes:
        config: Settings of the training. For a converted checkpoint only the architecture is known;
            the others are the defaults.
        merged_channels: Channels of the backbone's merged features.
        frozen: For "sam" and "backbone", the frozen weights of the training: "architecture", and
            "arrays_sha256" (see `files.checksum`) or, for random weights, "seed".
        version: The version of this library that wrote the file.
        benchmark: `data.name` of the training.
        classes: Names of the classes that were trained on.
        fold: Fold whose classes were kept for testing.
        step: Number of training steps.
        results: Scores of these parameters, named as in `results.json`; "settings" lists the
            settings in which the evaluation differed from the training.
        source_name: File name of the torch checkpoint that was converted.
        source_sha256: Checksum of that checkpoint.
    """

    config: Config
    merged_channels: int
    frozen: dict[str, dict[str, Any]]
    version: str
    benchmark: str | None = None
    classes: Sequence[str] | None = None
    fold: int | None = None
    step: int | None = None
    results: dict[str, Any] | None = None
    source_name: str | None = None
    source_sha256: str | None = None


def frozen_weights(cfg: Config) -> dict[str, dict[str, Any]]:
    """The frozen weights that the settings name, in the form of `Trained.frozen`.

    Raises:
        UserError: A weight file is missing, damaged or of another network.
    """
    found = {}
    for kind, name, file in (
        ("sam", cfg.sam.model, cfg.sam.weight_file()),
        ("backbone", cfg.backbone.name, cfg.backbone.weight_file()),
    ):
        if file == RANDOM:
            origin = {"seed": cfg.seed}
        else:
            held = files.frozen_metadata(file, kind=kind, architecture=name)
            origin = {"arrays_sha256": held.get("arrays_sha256")}
        found[kind] = {"architecture": name, **origin}
    return found


def write_frozen(cfg: Config, workdir: pathlib.Path) -> None:
    """Records in a run's folder which frozen weights it uses.

    Raises:
        UserError: A weight file is missing, damaged or of another network.
    """
    write_object(workdir / FROZEN, frozen_weights(cfg))


class Dataset(NamedTuple):
    """What a run is trained on, as its folder records it.

    Attributes:
        name: `data.name`.
        classes: Names of the classes that are trained on.
        images_sha256: Digest of the lists of their images (`data.folds.digest`).
    """

    name: str
    classes: list[str]
    images_sha256: str


def write_dataset(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Records in a run's folder what it is trained on."""
    write_object(workdir / DATASET, dataset._asdict())


def read_dataset(workdir: pathlib.Path) -> Dataset | None:
    """What a run is trained on; None for runs of older versions, which do not record it.

    Raises:
        UserError: The file is damaged.
    """
    path, mend = workdir / DATASET, "restore it, or delete it"
    try:
        held = read_object(path, Dataset._fields, mend)
    except FileNotFoundError:
        return None
    found = Dataset(*(held[name] for name in Dataset._fields))
    if not (_are_names(found.classes) and _are_names([found.name, found.images_sha256])):
        raise UserError(f"{path} is damaged (it has other than names); {mend}")
    return found


def read_frozen(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The frozen weights of a run, as `write_frozen` recorded them.

    Raises:
        UserError: The file is missing or damaged.
    """
    path, mend = workdir / FROZEN, "restore it or start a new run"
    try:
        held = read_object(path, (), mend)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {mend}") from None
    if not _names_frozen(held):
        raise UserError(f"{path} does not name the frozen weights: {mend}")
    return held


def check_frozen(
    what: object, held: Mapping[str, dict[str, Any]], given: Mapping[str, dict[str, Any]]
) -> None:
    """Raises UserError unless the frozen weights `given` are those that `what` was trained with.

    `held` (from the training) and `given` have the form of `Trained.frozen`; unknown checksums are
    not compared.
    """
    for kind in ("sam", "backbone"):
        _check_origin(what, f"{kind}.weights", held[kind], given[kind])


def save(path: str | os.PathLike[str], arrays: Mapping[str, Array], trained: Trained) -> None:
    """Writes the file; `arrays` are those of the prompt encoder (`files.leaves`)."""
    name = trained.config.distribution.name
    metadata = {"kind": KIND, "architecture": name, **dataclasses.asdict(trained)}
    files.save(path, arrays, metadata)


def read(path: str | os.PathLike[str]) -> Trained:
    """Reads what a file says about its prompt encoder, without its parameters.

    Paths in its settings are not taken: they are of the machine that wrote it.

    Raises:
        UserError: The file is missing, damaged or not one of a prompt encoder.
    """
    held = files.metadata(path, made_by=MADE_BY)
    if held.get("format") != files.FORMAT or held.get("kind") != KIND:
        raise UserError(f"{path} is not a trained prompt encoder; make one with: {MADE_BY}")
    if wrong := [name for name, is_valid in CHECKS.items() if not is_valid(held.get(name))]:
        raise UserError(f"{path} lacks valid {', '.join(wrong)}; make it again with: {MADE_BY}")
    try:
        cfg = recorded(held["config"])
    except UserError as error:
        raise UserError(f"{path} was trained with settings unknown here: {error}") from error
    names = (CHECKS.keys() & held.keys()) - {"config"}
    return Trained(config=without_paths(cfg), **{name: held[name] for name in names})


def check_fit(path: str | os.PathLike[str], cfg: Config) -> None:
    """Raises UserError unless the prompt encoder in the file can be used with the settings `cfg`.

    Architecture and frozen weights must be those of the training; unknown checksums of weights are
    not compared.
    """
    trained = read(path)
    before, after = flat(trained.config), flat(cfg)
    of_role = (x for x in before if about(Config, x).role is Role.ARCHITECTURE)
    differing = [name for name in of_role if before[name] != after[name]]
    if differing:
        held, wanted = (", ".join(f"{x}={y[x]}" for x in differing) for y in (before, after))
        raise UserError(
            f"{path} was trained with {held}, but the settings say {wanted}; set {held}"
        )
    check_frozen(path, trained.frozen, frozen_weights(cfg))


def check_fold(path: str | os.PathLike[str], cfg: Config) -> None:
    """Raises UserError, in one line, if the file is of another fold of the benchmark of `cfg`.

    A folder of pictures is no benchmark: there the classes' names tell (`check_unseen`), except
    for a file that does not say them.
    """
    trained = read(path)
    if trained.fold is None or trained.benchmark != cfg.data.name:
        return
    if cfg.data.name == "folder" and trained.classes is not None:
        return
    if trained.fold != cfg.data.fold:
        raise UserError(
            f"{path} was trained on fold {trained.fold} of {trained.benchmark} and has seen the "
            f"test classes of fold {cfg.data.fold}; set data.fold={trained.fold}"
        )
    if (novel := trained.config.data.novel) != cfg.data.novel:
        raise UserError(
            f"{path} was trained with data.novel={novel!r} and may have seen the test classes of "
            f"data.novel={cfg.data.novel!r}; set data.novel={novel!r}"
        )


def check_unseen(what: object, seen: Collection[str] | None, tested: Collection[str]) -> None:
    """Raises UserError, in one line, if classes are tested that `what` was trained on.

    Args:
        what: A run's folder or a file, for the message.
        seen: Names of the classes that it was trained on; None where nobody wrote them down.
        tested: Names of the classes that are tested.
    """
    if both := sorted(set(seen or ()) & set(tested)):
        names = printable(", ".join(both))
        raise UserError(
            f"{what} was trained on {names}, so a test on that proves nothing: choose "
            "classes that it has not seen with data.novel (your own pictures) or data.fold"
        )


def _check_origin(what: object, setting: str, held: dict[str, Any], given: dict[str, Any]) -> None:
    unknown = None in (held.get("arrays_sha256", ""), given.get("arrays_sha256", ""))
    if held == given or (unknown and "seed" not in held | given):
        return
    mend = (
        f"set {setting}={RANDOM} and seed={held['seed']}"
        if "seed" in held
        else f"set {setting} to the file of the training"
    )
    raise UserError(
        f"{what} was trained on {held['architecture']} with {origin(held)}, but {setting} has "
        f"{origin(given)}, for which its prompts are meaningless; {mend}"
    )


def facts(trained: Trained) -> dict[str, str]:
    """What a file says about its prompt encoder: readable values of one line, by name."""
    cfg, results = trained.config, trained.results
    rows = {
        "distribution": cfg.distribution.name,
        "prompts": f"{cfg.prompt.num_queries} per reference, {cfg.prompt.dim} wide",
        "SAM": f"{cfg.sam.model}, {origin(trained.frozen['sam'])}",
        "backbone": f"{cfg.backbone.name} ({trained.merged_channels} merged channels), "
        f"{origin(trained.frozen['backbone'])}",
        "trained on": _trained_on(trained),
        "steps": "unknown" if trained.step is None else f"{trained.step:,}",
        "results": "unknown",
    }
    if results:
        rows["results"] = (
            f"mIoU {results['miou']:.2f}, FB-IoU {results['fb_iou']:.2f} on "
            f"{results['episodes']:,} episodes, list sha256 {results['episode_list_sha256']}"
        )
        if results["settings"]:
            rows["evaluated with"] = ", ".join(results["settings"])
        ious = results["per_class"].items()
        rows["IoU of the classes"] = ", ".join(f"{name} {iou:.2f}" for name, iou in ious)
    if trained.source_name:
        rows["converted from"] = f"{trained.source_name}, sha256 {trained.source_sha256}"
    rows["written by"] = f"prosam_jax {trained.version}"
    return {name: printable(value) for name, value in rows.items()}


def _trained_on(trained: Trained) -> str:
    if trained.benchmark == "folder" and trained.classes:
        return f"a folder of pictures, its classes {', '.join(trained.classes)}"
    if trained.fold is None:
        return "unknown"
    return f"{trained.benchmark}, fold {trained.fold} kept for testing"


def origin(frozen: Mapping[str, Any]) -> str:
    """Describes an entry of `Trained.frozen`, such as "weights of sha256 ..."."""
    if "seed" in frozen:
        return f"random weights of seed {frozen['seed']}"
    digest = frozen["arrays_sha256"]
    return f"weights of sha256 {digest}" if digest else "weights of unknown sha256"
