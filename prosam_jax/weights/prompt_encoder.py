"""A trained prompt encoder in one file, with all that is needed to use it.

It is a weight file of kind "prompt_encoder" whose metadata holds the fields of `Trained`.
"""

import dataclasses
import json
import operator
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from prosam_jax.config import RANDOM, Config
from prosam_jax.errors import UserError
from prosam_jax.weights import files

KIND = "prompt_encoder"
MADE_BY = (
    "python -m prosam_jax.prompt_file export --workdir=RUN --out=FILE (or pull, or "
    "convert/vrp_sam_to_flax.py)"
)
FROZEN = "frozen.json"
SCORES = ("miou", "fb_iou", "per_class", "episodes", "episode_list_sha256")


def _names_frozen(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry := value.get(kind), dict)
        and "architecture" in entry
        and ("seed" in entry or "arrays_sha256" in entry)
        for kind in ("sam", "backbone")
    )


def _names_scores(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and {*SCORES, "settings"} <= value.keys())


# What `Trained` and everything that shows it rely on, in a file that anybody may have made.
NEEDED: dict[str, Callable[[Any], bool]] = {
    "config": lambda value: isinstance(value, dict),
    "merged_channels": lambda value: isinstance(value, int),
    "frozen": _names_frozen,
    "version": lambda value: isinstance(value, str),
    "results": _names_scores,
    "step": lambda value: value is None or isinstance(value, int),
}
# Parameters that were learned under one value of these mean something else under another.
BOUND = (
    "distribution.name",
    "prompt.dim",
    "prompt.num_queries",
    "prompt.num_heads",
    "prompt.normalize_prior",
    "backbone.name",
    "sam.model",
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a file says of its prompt encoder; None stands for what nobody wrote down.

    Attributes:
        config: Settings of the training; of a converted checkpoint no more is known than those of
            `BOUND`, and the others are the defaults.
        merged_channels: Channels of the backbone's merged features.
        frozen: By "sam" and "backbone", the weights that the training stood on: "architecture",
            and "arrays_sha256" (of their names and numbers) or, for random ones, "seed".
        version: The version of this library that wrote the file.
        benchmark: `data.name` of the training.
        fold: Fold whose classes were kept for testing.
        step: Training steps taken.
        results: Scores of these very parameters, named as in `results.json`; "settings" lists
            those in which that evaluation differed from the training.
        source_name: The torch checkpoint that was converted.
        source_sha256: Its checksum.
    """

    config: Config
    merged_channels: int
    frozen: dict[str, dict[str, Any]]
    version: str
    benchmark: str | None = None
    fold: int | None = None
    step: int | None = None
    results: dict[str, Any] | None = None
    source_name: str | None = None
    source_sha256: str | None = None


def frozen_weights(cfg: Config) -> dict[str, dict[str, Any]]:
    """The frozen weights that the settings name, as in `Trained.frozen`.

    Raises:
        ValueError: A weight file is missing or damaged.
    """
    found = {}
    for kind, name, file in (
        ("sam", cfg.sam.model, cfg.sam.weight_file()),
        ("backbone", cfg.backbone.name, cfg.backbone.weight_file()),
    ):
        if file == RANDOM:
            origin = {"seed": cfg.seed}
        else:
            held = files.metadata(file, made_by=files.made_by(kind, name, file))
            origin = {"arrays_sha256": held.get("arrays_sha256")}
        found[kind] = {"architecture": name, **origin}
    return found


def write_frozen(cfg: Config, workdir: pathlib.Path) -> None:
    """Keeps in a run's folder which frozen weights it stands on."""
    (workdir / FROZEN).write_text(json.dumps(frozen_weights(cfg), indent=2) + "\n")


def read_frozen(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The frozen weights of a run; ValueError if its folder does not name them."""
    try:
        return json.loads((workdir / FROZEN).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"{workdir / FROZEN} is missing or damaged ({error}): restore it or begin a new run"
        ) from error


def check_frozen(
    what: object, held: Mapping[str, dict[str, Any]], given: Mapping[str, dict[str, Any]]
) -> None:
    """Raises ValueError unless `what`, trained on `held`, means the same on `given`.

    Both are as `Trained.frozen`; numbers that nobody wrote down are not compared.
    """
    for kind in ("sam", "backbone"):
        _check_origin(what, f"{kind}.weights", held[kind], given[kind])


def save(path: str | os.PathLike[str], arrays: Mapping[str, Array], trained: Trained) -> None:
    """Writes the file; `arrays` are the prompt encoder's (`weights.leaves`)."""
    name = trained.config.distribution.name
    metadata = {"kind": KIND, "architecture": name, **dataclasses.asdict(trained)}
    files.save(path, arrays, metadata)


def read(path: str | os.PathLike[str]) -> Trained:
    """What the file says of its prompt encoder.

    Raises:
        ValueError: The file is missing, damaged, or not of a prompt encoder.
    """
    held = files.metadata(path, made_by=MADE_BY)
    if held.get("format") != files.FORMAT or held.get("kind") != KIND:
        raise UserError(f"{path} is no file of a trained prompt encoder; make one with: {MADE_BY}")
    if missing := [name for name, holds in NEEDED.items() if not holds(held.get(name))]:
        raise UserError(
            f"{path} does not say its {', '.join(missing)}; make it again with: {MADE_BY}"
        )
    try:
        cfg = Config.from_dict(held["config"])
    except ValueError as error:
        raise UserError(f"{path} was trained with settings unknown here: {error}") from error
    names = ({field.name for field in dataclasses.fields(Trained)} & held.keys()) - {"config"}
    return Trained(config=cfg, **{name: held[name] for name in names})


def check_fit(path: str | os.PathLike[str], cfg: Config) -> None:
    """Raises ValueError, in one line, unless the file means under `cfg` what it was trained for.

    The settings of `BOUND` must be the training's, and the frozen weights too, where both sides
    know them.
    """
    trained = read(path)
    pairs = {
        name: (operator.attrgetter(name)(trained.config), operator.attrgetter(name)(cfg))
        for name in BOUND
    }
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if differing:
        held, wanted = (
            ", ".join(f"{name}={pair[i]}" for name, pair in differing.items()) for i in (0, 1)
        )
        raise UserError(
            f"{path} was trained with {held}, but the settings say {wanted}; set {held}"
        )
    if trained.benchmark == cfg.data.name and trained.fold != cfg.data.fold:
        raise UserError(
            f"{path} was trained on fold {trained.fold} of {trained.benchmark} and has seen the "
            f"test classes of fold {cfg.data.fold}; set data.fold={trained.fold}"
        )
    novel = trained.config.data.novel
    if trained.benchmark == cfg.data.name and trained.fold is not None and novel != cfg.data.novel:
        raise UserError(
            f"{path} was trained with data.novel={novel!r} and may have seen the test classes of "
            f"data.novel={cfg.data.novel!r}; set data.novel={novel!r}"
        )
    check_frozen(path, trained.frozen, frozen_weights(cfg))


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
        f"{origin(given)}, where its prompts mean nothing; {mend}"
    )


def facts(trained: Trained) -> dict[str, str]:
    """What a file says, for people: a name and a value each, one line."""
    cfg, results = trained.config, trained.results
    rows = {
        "distribution": cfg.distribution.name,
        "prompts": f"{cfg.prompt.num_queries} per reference, {cfg.prompt.dim} wide",
        "SAM": f"{cfg.sam.model}, {origin(trained.frozen['sam'])}",
        "backbone": f"{cfg.backbone.name} ({trained.merged_channels} merged channels), "
        f"{origin(trained.frozen['backbone'])}",
        "trained on": "unknown"
        if trained.fold is None
        else f"{trained.benchmark}, fold {trained.fold} kept for testing",
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
    return rows | {"written by": f"prosam_jax {trained.version}"}


def origin(frozen: Mapping[str, Any]) -> str:
    """Where frozen weights (an entry of `Trained.frozen`) come from, for people."""
    if "seed" in frozen:
        return f"random weights of seed {frozen['seed']}"
    return f"weights of sha256 {frozen['arrays_sha256'] or 'nobody knows'}"
