"""A trained prompt encoder in one file, with all that is needed to use it.

It is a weight file of kind "prompt_encoder" whose metadata holds the fields of `Trained`.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from prosam_jax.config import (
    OF_AN_EVALUATION,
    RANDOM,
    Config,
    Role,
    changed,
    check_choice,
    flat_mapping,
    packaged,
    read_config,
    recorded,
    replaced,
)
from prosam_jax.config.fields import about, flat
from prosam_jax.errors import UserError
from prosam_jax.json_files import read_object
from prosam_jax.weights import files, hub

KIND = "prompt_encoder"
MADE_BY = "prosam export --workdir=RUN --out=FILE (or prosam weights pull, or convert vrp-sam)"
DEFAULT = "prosam-shapes"
# They come with the package. This one knows generated shapes: on photos it is a toy.
PACKAGED_ENCODERS = {DEFAULT: pathlib.Path(packaged("prompt_encoder", "shapes"))}
FROZEN = "frozen.json"
DATASET = "dataset.json"
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


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a file says of its prompt encoder; None stands for what nobody wrote down.

    Attributes:
        config: Settings of the training; of a converted checkpoint only the architecture is known,
            and the others are the defaults.
        merged_channels: Channels of the backbone's merged features.
        frozen: By "sam" and "backbone", the weights that the training stood on: "architecture",
            and "arrays_sha256" (of their names and numbers) or, for random ones, "seed".
        version: The version of this library that wrote the file.
        benchmark: `data.name` of the training.
        dataset: What its dataset is known by (`data.folds.FoldRule.dataset`).
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
    dataset: str | None = None
    fold: int | None = None
    step: int | None = None
    results: dict[str, Any] | None = None
    source_name: str | None = None
    source_sha256: str | None = None


def find(name: str | os.PathLike[str]) -> pathlib.Path:
    """The file or the run's folder that a name stands for.

    Args:
        name: A name of `PACKAGED_ENCODERS`; a path; or "user/name", a repository of a hub, whose
            file is brought to the hub client's cache.

    Raises:
        UserError: There is nothing of that name.
    """
    if (text := os.fspath(name)) in PACKAGED_ENCODERS:
        return PACKAGED_ENCODERS[text]
    path = pathlib.Path(os.path.expanduser(text))
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{path} is not the folder of a run: it has no config.json")
    if path.exists() or path.suffix:
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not path.parent.is_dir():
        return hub.download(text)
    if len(path.parts) > 1:
        raise UserError(f"{path}: there is no such file, nor a run's folder")
    check_choice("prompt encoder", text, PACKAGED_ENCODERS)
    return path


def find_file(name: str | os.PathLike[str]) -> pathlib.Path:
    """`find`, but of a file.

    Raises:
        UserError: There is nothing of that name, or it is the folder of a run.
    """
    path = find(name)
    if path.is_dir():
        raise UserError(
            f"{path} is the folder of a run: make a file of it with: prosam export "
            f"--workdir={path} --out=FILE"
        )
    return path


def settings_of(path: pathlib.Path) -> Config:
    """The settings of a run's folder or of a file, in which `prompt.weights` is then the file.

    Raises:
        UserError: It is missing, damaged or something else.
    """
    if path.is_dir():
        return replaced(read_config(path / "config.json"), {"prompt.weights": ""})
    return replaced(read(path).config, {"prompt.weights": str(path)})


def usable(trained: Config, overrides: Mapping[str, Any]) -> Config:
    """The settings of a training, changed for a model that is used elsewhere.

    Args:
        trained: Settings of the training.
        overrides: Other values by dotted name or nested in groups: of SAM's and the backbone's
            settings those that are not of the architecture, and `data.downsample`.

    Raises:
        UserError: A setting is unknown, not valid, or not one of these.
    """
    changes = flat_mapping(overrides)
    cfg = replaced(trained, changes)
    unused = [
        name
        for name in changes
        if name.partition(".")[0] not in ("sam", "backbone") and name != "data.downsample"
    ]
    if differences := changed(trained, cfg, OF_AN_EVALUATION):
        raise UserError(
            f"these settings belong to the training and cannot be changed: {'; '.join(differences)}"
        )
    if unused:
        raise UserError(
            f"{', '.join(unused)}: a trained model does not read that; it reads data.downsample "
            "and the settings of sam and backbone"
        )
    return cfg


def frozen_weights(cfg: Config) -> dict[str, dict[str, Any]]:
    """The frozen weights that the settings name, as in `Trained.frozen`.

    Raises:
        UserError: A weight file is missing or damaged.
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


def write_dataset(dataset: str, workdir: pathlib.Path) -> None:
    """Keeps in a run's folder what its dataset is known by."""
    (workdir / DATASET).write_text(json.dumps({"dataset": dataset}, indent=2) + "\n")


def read_dataset(workdir: pathlib.Path) -> str | None:
    """What the dataset of a run is known by; None for runs of older versions, which do not say.

    Raises:
        UserError: The file that says so is damaged.
    """
    path = workdir / DATASET
    try:
        return read_object(path, ["dataset"], "restore it, or delete it")["dataset"]
    except FileNotFoundError:
        return None


def read_frozen(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The frozen weights of a run; UserError if its folder does not name them."""
    path, mend = workdir / FROZEN, "restore it or begin a new run"
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
    """Raises UserError unless `what`, trained on `held`, means the same on `given`.

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
        UserError: The file is missing, damaged, or not of a prompt encoder.
    """
    held = files.metadata(path, made_by=MADE_BY)
    if held.get("format") != files.FORMAT or held.get("kind") != KIND:
        raise UserError(f"{path} is no file of a trained prompt encoder; make one with: {MADE_BY}")
    if missing := [name for name, holds in NEEDED.items() if not holds(held.get(name))]:
        raise UserError(
            f"{path} does not say its {', '.join(missing)}; make it again with: {MADE_BY}"
        )
    try:
        cfg = recorded(held["config"])
    except UserError as error:
        raise UserError(f"{path} was trained with settings unknown here: {error}") from error
    names = ({field.name for field in dataclasses.fields(Trained)} & held.keys()) - {"config"}
    return Trained(config=cfg, **{name: held[name] for name in names})


def check_fit(path: str | os.PathLike[str], cfg: Config) -> None:
    """Raises UserError, in one line, unless the file means under `cfg` what it was trained for.

    The settings of the architecture must be the training's, and the frozen weights too, where both
    sides know them.
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


def check_unseen(path: str | os.PathLike[str], cfg: Config, dataset: str | None) -> None:
    """Raises UserError, in one line, if the file has been trained on classes that `cfg` tests.

    Args:
        path: The file.
        cfg: Settings of a training that begins from it, or of its evaluation.
        dataset: What the dataset of `cfg` is known by (`FoldRule.dataset`).
    """
    trained = read(path)
    if trained.fold is None or trained.benchmark != cfg.data.name:
        return
    if trained.dataset is not None and trained.dataset != dataset:
        return  # another folder of somebody's own
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
