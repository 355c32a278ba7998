"""One HTML file that shows a comparison: table, pictures, curves and how it was made.

It needs nothing but itself: pictures and curves are inside, there is no script, and no address is
asked for anything. It follows the reader's choice of light or dark.
"""

import base64
import html
import io
import json
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from prosam_jax import console
from prosam_jax.atomic import replacing
from prosam_jax.comparison import methods, tables
from prosam_jax.evaluation import controls, results
from prosam_jax.evaluation.results import Example
from prosam_jax.report import pictures, scores

PREDICTED, TRUTH, WRONG = (0.1, 0.5, 1.0), (0.1, 0.8, 0.3), (1.0, 0.3, 0.3)
COLOURS = ("#1f77d0", "#d9730d", "#2a9d5c", "#a04bc2")

ABOUT_CONTROLS = (
    "A score is visual reference segmentation only by its distance from three controls on the "
    "same episodes: SAM without any prompt, the prompt encoder before training, and the trained "
    "one shown a reference of a wrong class. If the last stood as high as the score itself, the "
    "networks would be finding objects without looking at the reference."
)


def write(path: pathlib.Path, runs: Sequence[methods.Run], command: str) -> None:
    """Writes the file.

    Args:
        path: The `.html` file.
        runs: Finished runs, `examples.npz` of each over the same episodes.
        command: What made them.
    """
    held, curves, examples = {}, {}, {}
    for run in runs:
        held[run.title] = json.loads((run.workdir / "results.json").read_text())
        lines = (run.workdir / "metrics.jsonl").read_text().splitlines()
        curves[run.title] = [json.loads(line) for line in lines]
        examples[run.title] = results.load_examples(run.workdir / "examples.npz")
    cfg = runs[0].cfg
    one = next(iter(held.values()))
    text = PAGE.substitute(
        fold=cfg.data.fold,
        episodes=one["episodes"],
        classes=html.escape(", ".join(one["per_class"])),
        table=_table(tables.rows(held)),
        about=ABOUT_CONTROLS,
        meanings=_list(controls.MEANING),
        threshold=f"{one['prior_threshold']:.2f}",
        pictures=_pictures(examples),
        curves=_chart("Loss in training", curves, "train/loss")
        + _chart("mIoU in training, %", curves, "train/miou", 100),
        facts=_list({"this comparison": command} | _facts(runs, held, curves)),
    )
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def _facts(
    runs: Sequence[methods.Run],
    held: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, str]:
    cfg = runs[0].cfg
    facts = {
        "made by": "; or ".join(dict.fromkeys(map(methods.made_by, held.values()))),
        "frozen": scores.frozen_line(cfg),
        "training": f"{cfg.train.steps:,} steps of {cfg.train.batch_size} episodes, seed "
        f"{cfg.seed}; the last checkpoint counts, none is chosen by its score",
        "episodes": f"list of seed {cfg.eval.seed}, sha256 "
        f"{held[runs[0].title]['episode_list_sha256']}",
    }
    for run in runs:
        scored = held[run.title]["seconds"]
        trained = _seconds(curves[run.title], cfg.train.batch_size)
        facts[f"time of {run.title}"] = (
            f"{console.clock(trained)} of training, {console.clock(scored)} of evaluation with "
            "controls, compilation included"
        )
    for run in runs:
        facts[f"{run.title} again"] = f"prosam evaluate --workdir {run.workdir} --checkpoint latest"
    return facts


def _seconds(lines: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Time of a training, from its curves."""
    trained = [line for line in lines if "train/loss" in line]
    steps = np.diff([0, *(line["step"] for line in trained)])
    return sum(
        n * batch_size / line["train/episodes_per_s"]
        for n, line in zip(steps, trained, strict=True)
    )


def _table(lines: Sequence[tables.Row]) -> str:
    out = []
    for line in lines:
        kind = "method" if line.name == line.method else "own" if line.method else "common"
        out.append(
            f'<tr class="{kind}"><th scope="row">{html.escape(line.name)}</th>'
            f"<td>{line.miou:.2f}</td><td>{line.fb_iou:.2f}</td>"
            f'<td class="bar"><i style="width:{line.miou:.1f}%"></i></td></tr>'
        )
    return "\n".join(out)


def _list(items: Mapping[str, str]) -> str:
    return "\n".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in items.items()
    )


def _pictures(examples: Mapping[str, Sequence[Example]]) -> str:
    """A row per episode; the methods' columns side by side."""
    *_, last = examples
    probabilistic = [title for title, of in examples.items() if of[0].uncertainty is not None]
    maps = [x.uncertainty for t in probabilistic for x in examples[t] if x.uncertainty is not None]
    brightest = max((x.max() for x in maps), default=np.float32(1))
    heads = ["reference", "target", "truth", *examples]
    heads += [f"uncertainty of {title}, white is {brightest:.1g}" for title in probabilistic]
    heads += ["a wrong reference", f"{last} given that"]
    out = ["<tr>" + "".join(f"<th>{html.escape(head)}</th>" for head in heads) + "</tr>"]
    for several in zip(*examples.values(), strict=True):
        first, *_, at_last = several
        episode = first.episode
        shots = len(episode.reference_image) // 2
        name = html.escape(first.class_name)
        cells = [
            _figure(
                pictures.overlay(
                    episode.reference_image[0], episode.reference_mask[0], pictures.MARK
                ),
                name,
            ),
            _figure(episode.target_image / 255),
            _figure(pictures.overlay(episode.target_image, episode.target_mask, TRUTH)),
        ]
        cells += [_prediction(x, x.prediction, PREDICTED) for x in several]
        inferno = matplotlib.colormaps["inferno"]
        cells += [
            _figure(inferno(x.uncertainty / max(brightest, 1e-6))[..., :3])
            for x in several
            if x.uncertainty is not None
        ]
        marked = episode.reference_image[shots], episode.reference_mask[shots]
        cells += [
            _figure(pictures.overlay(*marked, pictures.MARK)),
            _prediction(at_last, at_last.controls[controls.WRONG], WRONG),
        ]
        out.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join(out)


def _prediction(example: Example, mask: np.ndarray, colour: tuple[float, float, float]) -> str:
    iou = results.iou_of(example.episode, mask)
    return _figure(
        pictures.overlay(example.episode.target_image, mask, colour), f"IoU {100 * iou:.0f}"
    )


def _figure(image: np.ndarray, caption: str = "") -> str:
    """An image with values in [0, 1] as an element that holds its own data."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(buffer, "png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{caption}" src="data:image/png;base64,{data}"><small>{caption}</small>'


def _chart(
    title: str, curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, factor: float = 1
) -> str:
    """Lines over the training steps as SVG, a colour for each method."""
    width, height, left, right, bottom = 460, 240, 46, 20, 30
    series = {
        name: np.array([(line["step"], factor * line[key]) for line in lines if key in line])
        for name, lines in curves.items()
    }
    points = np.concatenate(list(series.values()))
    x_ticks = MaxNLocator(5).tick_values(0, points[:, 0].max())
    y_ticks = MaxNLocator(5).tick_values(points[:, 1].min(), points[:, 1].max())

    def x(value: float) -> float:
        return left + (width - left - right) * value / x_ticks[-1]

    def y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return 10 + (height - bottom - 10) * (1 - share)

    parts = [f'<figure><figcaption>{html.escape(title)}</figcaption><svg viewBox="0 0 ']
    parts.append(f'{width} {height}" role="img" aria-label="{html.escape(title)}">')
    for tick in y_ticks:
        parts.append(
            f'<path class="grid" d="M{left} {y(tick):.1f}H{width - right}"/>'
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        )
    for tick in x_ticks:
        parts.append(
            f'<text x="{x(tick):.1f}" y="{height - 10}" text-anchor="middle">{tick:g}</text>'
        )
    for colour, line in zip(COLOURS, series.values(), strict=False):
        path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in line)
        parts.append(f'<path class="line" stroke="{colour}" d="M{path}"/>')
    parts.append("</svg><div>")
    for colour, name in zip(COLOURS, series, strict=False):
        parts.append(f'<span><b style="background:{colour}"></b>{html.escape(name)}</span>')
    return "".join(parts) + "</div></figure>"


PAGE = string.Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ProSAM on Shapes-5i</title>
<style>
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #646a73; --rule: #dde1e6;
  --paper: #fff; --bar: #1f77d0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #9aa2ad; --rule: #363b43;
  --paper: #16181b; --bar: #4d9be6; } }
body { margin: 2rem auto 4rem; max-width: 74rem; padding: 0 1.2rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin-bottom: .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { max-width: 46rem; }
table { border-collapse: collapse; }
.scores th, .scores td { padding: .22rem .9rem .22rem 0; text-align: right;
  font-variant-numeric: tabular-nums; }
.scores th { text-align: left; font-weight: normal; }
.scores thead th { color: var(--soft); }
.scores thead th + th { text-align: right; }
.scores .method th, .scores .method td { font-weight: 600; border-top: 1px solid var(--rule);
  padding-top: .5rem; }
.scores .own th { padding-left: 1.2rem; color: var(--soft); }
.scores .own + .common th, .scores .own + .common td { border-top: 1px solid var(--rule);
  padding-top: .5rem; }
.bar { width: 16rem; }
.bar i { display: block; height: .7rem; background: var(--soft); opacity: .45;
  border-radius: 2px; }
.method .bar i { background: var(--bar); opacity: 1; }
.wide { overflow-x: auto; }
.pictures th { font-size: .8rem; font-weight: normal; color: var(--soft); padding: 0 .25rem .3rem;
  vertical-align: bottom; }
.pictures td { padding: .15rem .25rem; text-align: center; vertical-align: top; }
.pictures img { display: block; width: 8rem; height: 8rem; border-radius: 4px; }
small { color: var(--soft); }
.curves { display: flex; flex-wrap: wrap; gap: 1.5rem; }
figure { margin: 0; flex: 1 1 22rem; max-width: 34rem; }
figcaption, figure div { color: var(--soft); font-size: .9rem; }
figure span { margin-right: 1.2rem; }
figure b { display: inline-block; width: 1.1rem; height: .25rem; margin-right: .4rem;
  vertical-align: middle; border-radius: 2px; }
svg text { fill: var(--soft); font-size: 12px; }
svg .grid { stroke: var(--rule); }
svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code, .commands dd { font-family: ui-monospace, monospace; font-size: .9em; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; }
  .bar { display: none; } }
</style>
<h1>Segmenting classes never seen in training</h1>
<p>A reference picture with one object marked, a target picture, and the wanted mask: every object
of that class. The prompt encoders were trained on the 15 base classes of fold $fold of Shapes-5i
and scored on $episodes episodes of the other five: $classes. SAM and the backbone stay frozen.</p>
<h2>Scores</h2>
<div class="wide"><table class="scores">
<thead><tr><th></th><th>mIoU %</th><th>FB-IoU %</th><th></th></tr></thead>
<tbody>
$table
</tbody></table></div>
<h2>What the controls mean</h2>
<p>$about</p>
<dl>
$meanings
</dl>
<p><small>That best threshold was $threshold.</small></p>
<h2>The first episodes</h2>
<p>Not chosen: the first of the list. The uncertainty is how far masks of prompts drawn from the
distribution disagree, brighter for more.</p>
<div class="wide"><table class="pictures">
$pictures
</table></div>
<h2>Training</h2>
<div class="curves">$curves</div>
<h2>How it was made</h2>
<dl class="commands">
$facts
</dl>
</html>
""")
