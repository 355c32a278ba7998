"""What a run shows and leaves behind: progress, curves, tables, results and pictures."""

import json
import pathlib
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import flax
import jax
import numpy as np
import rich.console
import rich.progress
import rich.table
from jaxtyping import Bool

import prosam_jax
from prosam_jax.atomic import replacing
from prosam_jax.config import RANDOM, Config, to_dict
from prosam_jax.training.evaluation import Example, Result
from prosam_jax.types import Episode

MARK = (1.0, 0.75, 0.0)
"""Colour of annotations in pictures."""


class Curves:
    """Numbers by step, as JSON lines in `metrics.jsonl` and for TensorBoard.

    Lines of steps after `start` belong to work that is done again; they are dropped, and so is a
    line that a crash cut short.
    """

    def __init__(self, workdir: pathlib.Path, start: int):
        path = workdir / "metrics.jsonl"
        old = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in old if _step_of(line) <= start]
        with replacing(path) as part:
            part.write_text("".join(f"{line}\n" for line in kept))
        self._lines = path.open("a", buffering=1)
        import tensorboardX  # here, because it imports torch where there is one, for seconds

        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=start + 1, write_to_disk=True
        )

    def write(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Adds the values of one step, as "group/name"."""
        named = {f"{group}/{name}": value for name, value in values.items()}
        self._lines.write(json.dumps({"step": step, **named}) + "\n")
        for name, value in named.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes both files."""
        self._lines.close()
        self._board.close()


def newest(workdir: pathlib.Path) -> dict[str, float]:
    """The training's last whole line in `metrics.jsonl`; empty if there is none yet."""
    lines = (workdir / "metrics.jsonl").read_text().split("\n")[:-1]
    return next((json.loads(x) for x in reversed(lines) if "train/loss" in x), {})


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except json.JSONDecodeError:
        return float("inf")


def training_bars(
    console: rich.console.Console, *more: rich.progress.ProgressColumn | str
) -> rich.progress.Progress:
    """Bars of trainings, a task with a "text" for each; none where there is no terminal.

    Args:
        console: Where they are shown.
        more: Further columns.
    """
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[text]}"),
        rich.progress.TimeElapsedColumn(),
        *more,
        console=console,
        disable=not console.is_terminal,
    )


class Progress:
    """A bar with loss, mIoU, episodes/s and time left; plain lines where there is no terminal."""

    def __init__(self, total: int, start: int, batch_size: int):
        self._console = rich.console.Console(highlight=False)
        self._bar = training_bars(
            self._console,
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("training", total=total, completed=start, text="")
        self._total, self._batch_size = total, batch_size

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the newest numbers: "loss", "miou" and "episodes_per_s"."""
        rate = values["episodes_per_s"]
        text = f"loss {values['loss']:.4f}  mIoU {100 * values['miou']:.1f}  {rate:.2f} episodes/s"
        self._bar.update(self._task, text=text)
        if not self._console.is_terminal:
            left = clock((self._total - step) * self._batch_size / rate)
            self.print(f"step {step}/{self._total}  {text}  {left} left")

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(line, soft_wrap=True)


@contextmanager
def counting(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar that counts to `total`; call what it gives with the number done.

    Where there is no terminal it is a line a minute.
    """
    console = rich.console.Console()
    if not console.is_terminal:
        yield _minutely(name, total)
        return
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)


def _minutely(name: str, total: int) -> Callable[[int], None]:
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 60:
            told = time.monotonic()
            print(f"{name}: {done:,} of {total:,}", flush=True)

    return tell


def versions() -> dict[str, str]:
    """The versions that numbers depend on."""
    return {
        "prosam_jax": prosam_jax.__version__,
        "jax": jax.__version__,
        "flax": flax.__version__,
        "python": platform.python_version(),
    }


def device_line() -> str:
    """What computes: number and kind of devices, and the versions that matter."""
    devices = jax.devices()
    return f"{len(devices)} x {devices[0].device_kind}, jax {jax.__version__}"


def frozen_line(cfg: Config) -> str:
    """Which frozen weights are used; says it plainly where they are random."""
    parts = {
        f"SAM {cfg.sam.model}": cfg.sam.weight_file(),
        f"backbone {cfg.backbone.name}": cfg.backbone.weight_file(),
    }
    return "; ".join(
        f"{name}: RANDOM weights, as asked for" if file == RANDOM else f"{name}: {file}"
        for name, file in parts.items()
    )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    seconds = round(seconds)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def summary(result: Result) -> str:
    """The scores in one line."""
    scores, n = result.scores, len(result.scores.per_class)
    return (
        f"mIoU {100 * scores.miou:.2f}, FB-IoU {100 * scores.fb_iou:.2f} on {result.episodes} "
        f"episodes of {n} class{'es' * (n > 1)}, {clock(result.seconds)}"
    )


def print_scores(result: Result) -> None:
    """Prints mIoU, FB-IoU and the IoU of each class; one without an episode is not counted."""
    table = rich.table.Table(title=f"{result.episodes} episodes of novel classes")
    table.add_column("class")
    table.add_column("IoU %", justify="right")
    for c, name in result.classes.items():
        iou = result.scores.per_class.get(c)
        table.add_row(name, "no episode" if iou is None else f"{100 * iou:.2f}")
    table.add_section()
    n, of = len(result.scores.per_class), len(result.classes)
    over = "" if n == of else f" (over {n} of {of} classes)"
    table.add_row(f"mIoU{over}", f"{100 * result.scores.miou:.2f}")
    table.add_row("FB-IoU", f"{100 * result.scores.fb_iou:.2f}")
    if result.controls:
        table.add_section()
    for name, scores in result.controls.items():
        table.add_row(f"mIoU of {name}", f"{100 * scores.miou:.2f}")
    rich.console.Console().print(table)
    if result.cueless:
        print(
            f"{result.cueless} of {result.references} references had no mark left at the size of "
            "the features (data.downsample=coverage keeps every mark)"
        )


def write_results(path: pathlib.Path, result: Result, cfg: Config, step: int | None) -> None:
    """Writes the scores (percent), the list of episodes and the settings they stand on, as JSON."""
    scores = result.scores
    results = {
        "miou": 100 * scores.miou,
        "fb_iou": 100 * scores.fb_iou,
        "per_class": {result.classes[c]: 100 * iou for c, iou in scores.per_class.items()},
        "episodes": result.episodes,
        "references": result.references,
        "cueless_references": result.cueless,
        "episode_list_sha256": result.digest,
        "seconds": round(result.seconds, 2),
        "step": step,
        "versions": versions(),
        "device": device_line(),
        "config": to_dict(cfg),
    }
    if result.controls:
        results["controls"] = {
            name: {"miou": 100 * scores.miou, "fb_iou": 100 * scores.fb_iou}
            for name, scores in result.controls.items()
        }
        results["prior_threshold"] = result.prior_threshold
    with replacing(path) as part:
        part.write_text(json.dumps(results, indent=2) + "\n")


def save_examples(path: pathlib.Path, examples: Sequence[Example]) -> None:
    """Keeps examples as arrays, for pictures that are drawn later."""
    arrays = {f"episode/{k}": [getattr(x.episode, k) for x in examples] for k in Episode._fields}
    arrays["class_name"] = [x.class_name for x in examples]
    arrays["prediction"] = [x.prediction for x in examples]
    for name in examples[0].controls:
        arrays[f"control/{name}"] = [x.controls[name] for x in examples]
    if examples[0].uncertainty is not None:
        arrays["uncertainty"] = [x.uncertainty for x in examples]
    stacked = {k: np.stack(x) for k, x in arrays.items()}
    with replacing(path) as part, part.open("wb") as file:  # to a name NumPy would add ".npz"
        np.savez_compressed(file, allow_pickle=False, **stacked)


def load_examples(path: pathlib.Path) -> list[Example]:
    """What `save_examples` kept."""
    with np.load(path) as file:
        arrays = dict(file)
    return [
        Example(
            episode=Episode(*(arrays[f"episode/{name}"][i] for name in Episode._fields)),
            class_name=str(arrays["class_name"][i]),
            prediction=arrays["prediction"][i],
            controls={
                name.removeprefix("control/"): x[i]
                for name, x in arrays.items()
                if name.startswith("control/")
            },
            uncertainty=arrays["uncertainty"][i] if "uncertainty" in arrays else None,
        )
        for i in range(len(arrays["prediction"]))
    ]


def draw_examples(path: pathlib.Path, examples: Sequence[Example]) -> None:
    """Draws one row per episode: reference with its annotation, target, prediction, truth."""
    import matplotlib.figure  # here, because it takes a second of every command's start

    figure = matplotlib.figure.Figure(figsize=(2.5 * 4, 2.6 * len(examples)), layout="constrained")
    axes = figure.subplots(len(examples), 4, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        episode, prediction = example.episode, example.prediction
        target = episode.query_image
        panels = (
            overlay(episode.support_image[0], episode.support_mask[0], MARK),
            target,
            overlay(target, prediction, (0.1, 0.5, 1.0)),
            overlay(target, episode.query_mask, (0.1, 0.8, 0.3)),
        )
        iou = f"IoU {100 * iou_of(episode, prediction):.0f} %"
        names = (f"reference: {example.class_name}", "target", f"prediction, {iou}", "truth")
        for axis, panel, name in zip(row, panels, names, strict=True):
            axis.imshow(panel)
            axis.set_title(name, fontsize=9)
            axis.set_axis_off()
        y, x = np.nonzero(_lone(episode.support_mask[0]))
        row[0].scatter(x, y, s=14, color=MARK, edgecolors="black", linewidths=0.6)
    with matplotlib.rc_context({"savefig.dpi": 110}):
        figure.savefig(path)


def iou_of(episode: Episode, mask: Bool[np.ndarray, "h w"]) -> float:
    """The foreground's IoU of one episode."""
    counted = ~episode.query_ignore
    overlap = (mask & episode.query_mask & counted).sum()
    return float(overlap / max(((mask | episode.query_mask) & counted).sum(), 1))


def _lone(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Marked pixels without a marked neighbour, too small to be seen in a picture."""
    padded = np.pad(mask, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask & ~beside


def overlay(image: np.ndarray, mask: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    """The image, dimmed outside the mask and tinted inside it."""
    image = image.astype(np.float32) / 255
    tinted = 0.35 * image + 0.65 * np.asarray(colour, np.float32).reshape(1, 1, 3)
    return np.where(mask[..., None], tinted, 0.5 * image)
