"""The page of a table of the paper: its figures, what is chosen for pictures, and the pictures."""

import base64
import csv
import dataclasses
import html
import io
import json
import re

import jax
import numpy as np
import pytest
from commands import one_line, status_of
from finished_runs import BASE, CLASS, counts_of, example, finish
from pages import read_whole
from PIL import Image

from prosam_jax.cli import settings
from prosam_jax.comparison import extremes, methods, pairs, reproduce, table_page
from prosam_jax.comparison.extremes import Extremes
from prosam_jax.comparison.reproduce import Preset
from prosam_jax.config import Config, replaced
from prosam_jax.evaluation import evaluate, results, strategies
from prosam_jax.evaluation.prediction import RESULT
from prosam_jax.report import figures, pictures
from prosam_jax.report import html as page

SMALL = Preset("small", {"pascal": BASE, "coco": BASE}, paper=False)
CLASSES = (CLASS, "$x^{2$", "\u732b", "drop")
GAUSSIAN, STUDENT = np.array([10.0, 20, 30, 40]), np.array([16.0, 18, 60, 44])
"""IoU of these classes in fold 0, in percent; one more in each further fold."""


@pytest.fixture
def made(tmp_path):
    """Table 4 on two folds, with two episodes of each class."""
    made = reproduce.plan("4", SMALL, tmp_path, folds=[0, 1])
    for (labels, fold), (run,) in made.runs.items():
        of = (STUDENT if labels == ("ProSAM",) else GAUSSIAN) + fold
        counts = np.concatenate([counts_of(iou, 1) for iou in (*of, *of)])
        finish(run, 33.0, {RESULT: counts}, classes=CLASSES)
    return made


def _page(made, path):
    """The page with pictures that were made up, and its text."""
    group = pairs.pictured(made)
    shown = [{i: example(i, uncertain=False) for i in (0, 5)} for _ in group.rows]
    kinds = {"The worst": [5, 0], "None": []}
    found = Extremes(group, 0, kinds, [np.linspace(0, 0.7, 8)] * len(shown), shown)
    table_page.write(path, made, found, "prosam reproduce '<b>'")
    return read_whole(path), path.read_text()


def _hints(text):
    """What is told of parts of figures."""
    return [html.unescape(x) for x in re.findall(r"<g><title>([^<]*)</title>", text)]


def _marks(text):
    """Where the marker of each of those parts is, by what is told."""
    parts = re.split(r"<g><title>", text)[1:]
    found = {}
    for part in parts:
        at = re.search(r'<use [^>]*x="([-\d.]+)" y="([-\d.]+)"', part)
        if at:
            found.setdefault(html.unescape(part.partition("<")[0]), (float(at[1]), float(at[2])))
    return found


def test_the_page_shows_every_value_with_its_interval(made, tmp_path):
    reader, text = _page(made, tmp_path / "table4.html")
    words, hints = reader.words(), _hints(text)
    for lines, sign in ((reproduce.lines(made), ""), (reproduce.differences(made), "+")):
        for line in lines:
            for x in line.values.values():
                low, high = (f"{y:{sign}.2f}" for y in x.interval)
                assert f"{x.ours:{sign}.2f} ({low} to {high})" in words
            x = line.values["mean"]
            name = "ProSAM over ProSAM with a Gaussian" if sign else line.row.labels[0]
            low, high = (f"{y:{sign}.2f}" for y in x.interval)
            assert hints.count(f"{name}: {x.ours:{sign}.2f} ({low} to {high})") == 2
    assert not any("the paper" in x for x in hints)  # whose values are of other data
    for word in ("Table 4 of the paper on Shapes-5i", "prosam reproduce '<b>'", "seed 321",
                 "prosam_jax 0.0.9; 1 x abacus", "ab" * 31 + "01", "There is no such episode.",
                 "shapes-fold1-mask-gaussian-seed321", "0:01:00", "folds 0, 1"):  # fmt: skip
        assert word in words
    assert sum(tag == "svg" for tag, _ in reader.seen) == 2 + 1 + 2
    sources = [attrs for tag, attrs in reader.seen if tag == "img"]
    assert len(sources) == 2 * 5
    assert [x["alt"] for x in sources[:5]] == [CLASS, "episode 5", "", "IoU 50.0", "IoU 50.0"]


def test_dots_lie_at_their_values_and_the_papers_where_the_data_is_the_papers(made, tmp_path):
    paper = dataclasses.replace(
        made,
        preset=dataclasses.replace(SMALL, bases={"pascal": BASE, "coco": Config()}, paper=True),
    )
    # Of one fold, because the paper's mean is of four.
    one = dataclasses.replace(paper, folds=(0,))
    _, text = _page(one, tmp_path / "table4.html")
    marks = _marks(text)
    values = {x.row.labels[0]: x.values["0"] for x in reproduce.lines(one)}
    assert values["ProSAM"].ours == pytest.approx(STUDENT.mean())
    shown = {
        f"ProSAM, the paper: {75.26:.2f}": 75.26,
        f"ProSAM with a Gaussian, the paper: {74.20:.2f}": 74.2,
    } | {
        f"{name}: {x.ours:.2f} ({x.interval.low:.2f} to {x.interval.high:.2f})": x.ours
        for name, x in values.items()
    }
    at = np.array([marks[words] for words in shown])
    slope, start = np.polyfit(list(shown.values()), at[:, 0], 1)
    assert slope > 0
    np.testing.assert_allclose(slope * np.array(list(shown.values())) + start, at[:, 0], atol=0.1)
    # Gaussian is the first row, and y goes down.
    assert at[0, 1] == at[3, 1] > at[1, 1] == at[2, 1]
    assert "ProSAM over ProSAM with a Gaussian, the paper: +1.06" in marks


def test_differences_are_grey_where_their_interval_includes_zero():
    rows = [
        figures.Dot("a", 1.0, figures.Interval(-1, 2), None),
        figures.Dot("b", -2.0, figures.Interval(-3, -1), None),
    ]
    text = str(figures.dots(rows, differences=True))
    lines = re.findall(r"<title>(.): [^<]*</title>\s*<path [^>]*stroke: (#\w+)", text)
    assert lines == [("a", figures.GREY), ("b", figures.COLOURS[0])]
    # Both rows have their zero in the same place.
    zeros = re.findall(r'id="zero\d">\s*<path d="M ([\d.]+) [\d.]+ \s*L ([\d.]+)', text)
    assert len(zeros) == 2 and len({x for both in zeros for x in both}) == 1


def test_each_class_is_a_point_with_its_name(made, tmp_path):
    (group,) = pairs.pairs(made)
    points = pairs.classes(made, group)
    assert [x.name for x in points] == [*CLASSES, *CLASSES]
    student = [*STUDENT, *STUDENT + 1]
    gaussian = [*GAUSSIAN, *GAUSSIAN + 1]
    np.testing.assert_allclose([x.row for x in points], student)
    np.testing.assert_allclose([x.other for x in points], gaussian)
    reader, text = _page(made, tmp_path / "table4.html")
    marks = _marks(text)
    at = np.array(
        [
            marks[f"{name}: ProSAM {y:.1f} %, ProSAM with a Gaussian {x:.1f} %"]
            for name, y, x in zip((*CLASSES, *CLASSES), student, gaussian, strict=True)
        ]
    )
    across, up = np.polyfit(gaussian, at[:, 0], 1), np.polyfit(student, at[:, 1], 1)
    assert across[0] == pytest.approx(-up[0], rel=0.01)  # so that the diagonal is one
    np.testing.assert_allclose(np.polyval(across, gaussian), at[:, 0], atol=0.1)
    np.testing.assert_allclose(np.polyval(up, student), at[:, 1], atol=0.1)
    # Those farthest from the diagonal carry their name: 30 apart in both folds, and 6.
    words = reader.words()
    assert re.findall(r">([^<]+)</text>", text).count("\u732b") == 2
    assert CLASS in words and not any(tag == "b" for tag, _ in reader.seen)
    assert "$x^{2$" not in re.findall(r">([^<]+)</text>", text)


ANNOTATIONS = [f"Shapes-5i, {x}" for x in ("point", "scribble", "box", "mask")]


@pytest.mark.parametrize(
    ("number", "compared", "title", "curves"),
    [
        ("1", 4, "Shapes-5i, mask: ProSAM over VRP-SAM", ANNOTATIONS),
        ("2", 0, "Shapes-5i: ProSAM", ["Shapes-5i"]),
        ("6", 1, "ProSAM over VRP-SAM", [""]),
        ("7", 2, "ProSAM over VRP-SAM + 2 linear", [""]),
        ("8", 5, "mean prompt only over max of logit masks", [""]),
    ],
)
def test_each_table_shows_what_it_compares(number, compared, title, curves, tmp_path):
    made = reproduce.plan(number, SMALL, tmp_path)
    counts = {RESULT: counts_of(50)}
    counts |= {name: counts_of(40 + i) for i, name in enumerate(strategies.NAMES)}
    for run in reproduce.together([made]):
        for scoring in (methods.OWN, *run.scorings):
            finish(run, 50.0, counts, scoring)
    assert len(pairs.pairs(made)) == compared
    assert pairs.pictured(made).title == title
    assert [x.shared for x in pairs.families(made)] == curves
    reader, _ = _page(made, tmp_path / "page.html")
    svgs = sum(tag == "svg" for tag, _ in reader.seen)
    assert svgs == 1 + bool(compared) + compared + 2 * len(curves)


def test_backbones_are_families_of_their_own(tmp_path):
    made = reproduce.plan("9", SMALL, tmp_path)
    assert pairs.pictured(made).title == "VGG-16: ProSAM over VRP-SAM"
    assert [x.shared for x in pairs.families(made)] == ["tiny", "VGG-16"]


def test_the_most_extreme_episodes_are_chosen():
    one = np.array([0.5, 0.2, 0.9, 0.9, 0.0, 0.3, 0.7])
    other = np.array([0.1, 0.2, 0.8, 0.9, 0.6, 0.1, 0.0])
    assert extremes.chosen([one, other], ["A", "B"]) == {
        "Where A gains most over B": [6, 0, 5],
        "Where A loses most to B": [4],
        "The worst of A": [4, 1, 5],
        "The best of A": [2, 3, 6],
    }
    assert list(extremes.chosen([one], ["A"])) == ["The worst of A", "The best of A"]


def test_chosen_episodes_are_those_of_the_list():
    source = evaluate.test_episodes(replaced(BASE, {"eval.episodes": 11}))
    part = extremes._part(source, [10, 1])
    assert len(part) == 2
    jax.tree.map(np.testing.assert_array_equal, (part[0], part[1]), (source[10], source[1]))


def test_points_are_enlarged_and_edges_are_not():
    image, mask = np.zeros((128, 128, 3), np.uint8), np.zeros((128, 128), bool)
    mask[5, 7] = mask[0, 127] = True
    marked = pictures.annotated(image, mask).max(-1) > 0
    assert marked.sum() == 5 * 5 + 3 * 3 and marked[3:8, 5:10].all() and marked[:3, 125:].all()
    mask[20:60, 20:60] = True
    assert ((pictures.annotated(image, mask).max(-1) > 0) == mask).all()


def test_a_large_picture_is_made_smaller():
    uri = page.panel(np.ones((512, 384, 3), np.float32)).uri
    data = base64.b64decode(uri.partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (192, 256)


TINY = {
    "data.image_size": 64, "sam.model": "tiny", "sam.weights": "random", "sam.image_size": 64,
    "backbone.name": "tiny", "backbone.weights": "random", "prompt.num_queries": 3,
    "prompt.dim": 256, "train.steps": 2, "train.log_every": 1, "train.learning_rate": 0.01,
    "eval.episodes": 11, "eval.batch_size": 4,
}  # fmt: skip


@pytest.mark.slow
def test_pictures_are_of_the_episodes_with_the_largest_gain_and_loss(tmp_path, capsys):
    base = replaced(Config(), settings.recipe("shapes") | TINY)
    preset = Preset("small", {"pascal": base, "coco": base}, paper=False)
    tables = [reproduce.plan(n, preset, tmp_path, folds=[0]) for n in ("4", "8")]
    for run in reproduce.together(tables):
        methods.finish(run)
    command = ["reproduce", "--table=4", "--fold=0", f"--workdir={tmp_path}"]
    command += [f"--config.{name}={value}" for name, value in TINY.items()]
    capsys.readouterr()
    assert status_of(*command) == 0
    assert str(tmp_path / "table4.html") in capsys.readouterr().out

    def ious(name, folder="", scored=RESULT):
        file = tmp_path / f"shapes-fold0-mask-{name}-seed321" / folder / "episodes.csv"
        rows = csv.DictReader(io.StringIO(file.read_text()))
        return np.array([float(x["iou"]) for x in rows if x["scored"] == scored])

    student, gaussian = ious("student_t"), ious("gaussian")
    gain = student - gaussian
    gains = [i for i in np.argsort(-gain, kind="stable") if gain[i] > 0][:3]
    losses = [i for i in np.argsort(gain, kind="stable") if gain[i] < 0][:3]
    worst = np.argsort(student, kind="stable")[:3]
    best = np.argsort(-student, kind="stable")[:3]
    reader = read_whole(tmp_path / "table4.html")
    shown = [attrs["alt"] for tag, attrs in reader.seen if tag == "img"]
    assert len({*gains, *losses}) >= 2  # or else nothing is tested
    expected = [*gains, *losses, *worst, *best]
    assert shown[1::5] == [f"episode {i}" for i in expected]
    assert shown[3::5] == [f"IoU {100 * student[i]:.1f}" for i in expected]
    assert shown[4::5] == [f"IoU {100 * gaussian[i]:.1f}" for i in expected]

    # The pictures are of masks that have the IoU that is told; also of a strategy's, the lowest.
    of_table_8 = extremes.found(tables[1])
    values = {x.row.scored: x.values["0"].ours for x in reproduce.lines(tables[1])}
    lowest = of_table_8.group.rows[1].scored
    assert values[lowest] == min(values[x] for x in strategies.NAMES)
    for shown, iou in (
        *zip(extremes.found(tables[0]).shown, (student, gaussian), strict=True),
        *zip(of_table_8.shown, (student, ious("student_t", "strategies", lowest)), strict=True),
    ):
        for i, one in shown.items():
            assert one.episode.index == i
            assert results.iou_of(one.episode, one.prediction) == pytest.approx(iou[i], abs=0.01)

    # A score that the run does not have is not passed over.
    file = tmp_path / "shapes-fold0-mask-student_t-seed321" / "episodes.csv"
    rows = list(csv.reader(io.StringIO(file.read_text())))
    row = rows[1 + worst[0]]
    assert row[1] == str(worst[0]) and row[5] == RESULT
    tp, fp, fn, tn = map(int, row[-4:])
    row[-4:] = map(str, (tp + fn, fp, 0, tn))
    assert fn > 64 * 64 / extremes.ALIKE
    file.write_text("\n".join(map(",".join, rows)))
    held = json.loads((file.parent / "results.json").read_text())
    (one,) = methods.counted(file.parent, held)
    scores = one.scores(RESULT, absent=False)
    held |= {"miou": 100 * scores.miou, "fb_iou": 100 * scores.fb_iou}
    (file.parent / "results.json").write_text(json.dumps(held))
    for cached in (reproduce._percent, reproduce.counted, reproduce.held):
        cached.cache_clear()
    assert status_of(*command) == 1
    one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], "results.json", "delete it")
    assert (tmp_path / "table4.md").is_file()
