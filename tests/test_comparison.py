"""Tables, the report and the grid, on results that were never computed."""

import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from prosam_jax.comparison import methods, report, sweep, tables
from prosam_jax.config import ANNOTATIONS, Config, to_dict
from prosam_jax.evaluation import controls, results
from prosam_jax.evaluation.results import Example
from prosam_jax.types import Episode
from prosam_jax.weights import prompt_encoder
from studies import other_annotations

BASE = Config.from_dict(
    {
        "data": {"name": "shapes", "image_size": 32},
        "train": {"steps": 60},
        "sam": {"model": "tiny", "weights": "random", "image_size": 64},
        "backbone": {"name": "tiny", "weights": "random"},
    }
)
CLASS = "<script>alert('x')</script> & co"


def _example(seed, *, uncertain):
    rng = np.random.default_rng(seed)

    def mask(*shape):
        return rng.random(shape) > 0.5

    episode = Episode(
        reference_image=rng.integers(0, 256, (2, 32, 32, 3), np.uint8),
        reference_mask=mask(2, 32, 32),
        target_image=rng.integers(0, 256, (32, 32, 3), np.uint8),
        target_mask=mask(32, 32),
        target_ignore=np.zeros((32, 32), bool),
        class_id=np.int32(1),
        index=np.int32(seed),
        valid=np.bool_(True),
    )
    masks = {controls.WRONG: mask(32, 32), controls.EMPTY: mask(32, 32)}
    uncertainty = rng.random((32, 32), np.float32) if uncertain else None
    return Example(episode, CLASS, mask(32, 32), masks, uncertainty)


def _finished(workdir, method, miou):
    """A folder as a finished run leaves it."""
    run = methods.run_of(BASE, workdir, method, {"distribution.name": method})
    run.workdir.mkdir(parents=True)
    prompt_encoder.write_frozen(run.cfg, run.workdir)
    held = {
        "miou": miou,
        "fb_iou": miou / 2,
        "per_class": {CLASS: miou},
        "episodes": 3,
        "episode_list_sha256": "ab" * 32,
        "seconds": 12.0,
        "step": run.cfg.train.steps,
        "versions": {"prosam_jax": "0.0.9"},
        "device": "1 x abacus",
        "config": to_dict(run.cfg),
        "controls": {
            name: {"miou": miou - i, "fb_iou": 1.0 + i} for i, name in enumerate(controls.MEANING)
        },
        "prior_threshold": 0.44,
    }
    (run.workdir / "results.json").write_text(json.dumps(held))
    lines = [
        {"step": 20 * i, "train/loss": 1 / i, "train/miou": 0.1 * i, "train/episodes_per_s": 2.0}
        for i in (1, 2, 3)
    ]
    (run.workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    examples = [_example(i, uncertain=method != "vrp") for i in range(3)]
    results.save_examples(run.workdir / "examples.npz", examples)
    return run


def test_only_results_of_the_very_same_run_count(tmp_path):
    run = _finished(tmp_path, "vrp", 40.0)
    assert methods.finish(run)["miou"] == 40.0  # nothing is trained
    longer = dataclasses.replace(run.cfg, train=dataclasses.replace(run.cfg.train, steps=7))
    assert methods.results(dataclasses.replace(run, cfg=longer)) is None
    frozen = json.loads((run.workdir / "frozen.json").read_text())
    other = {**frozen, "sam": {"architecture": "tiny", "arrays_sha256": "0"}}
    (run.workdir / "frozen.json").write_text(json.dumps(other))
    assert methods.results(run) is None
    (run.workdir / "frozen.json").write_text(json.dumps(frozen))
    assert methods.results(run) is not None
    held = methods.finish(run)
    halfway = json.dumps(held | {"step": 30})  # as evaluate.py leaves them on the way
    (run.workdir / "results.json").write_text(halfway)
    assert methods.results(run) is None
    (run.workdir / "results.json").write_text('{"miou": 4')  # the machine went down here
    assert methods.results(run) is None


def test_examples_are_kept_whole(tmp_path):
    examples = [_example(i, uncertain=True) for i in range(2)]
    results.save_examples(tmp_path / "x.npz", examples)
    for found, kept in zip(results.load_examples(tmp_path / "x.npz"), examples, strict=True):
        assert found.class_name == kept.class_name
        assert found.controls.keys() == kept.controls.keys()
        arrays = [(*x.episode, x.prediction, *x.controls.values(), x.uncertainty)
                  for x in (found, kept)]  # fmt: skip
        for x, y in zip(*arrays, strict=True):
            np.testing.assert_array_equal(x, y)


class _Reader(html.parser.HTMLParser):
    """Notes elements, and checks that they are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_is_whole_and_asks_nobody_for_anything(tmp_path):
    runs = [_finished(tmp_path, "vrp", 40.0), _finished(tmp_path, "student_t", 50.0)]
    report.write(tmp_path / "report.html", runs, "python demo.py '<b>'")
    text = (tmp_path / "report.html").read_text()
    reader = _Reader()
    reader.feed(text)
    assert reader.open == []
    tags = {tag for tag, _ in reader.seen}
    assert not tags & {"script", "link", "iframe", "b>"}
    assert not re.search(r"https?:|url\(|@import", text)
    assert text.count(CLASS.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
                      .replace("'", "&#x27;")) > 1  # fmt: skip
    sources = [attrs["src"] for tag, attrs in reader.seen if tag == "img"]
    # Reference, target, truth, two predictions, one map, the wrong reference and its prediction.
    assert len(sources) == 3 * 8
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
    words = " ".join(reader.text)
    for word in ("VRP-SAM", "ProSAM, Student-t", "50.00", "39.00", "seed 321", "0.44", "0:01:00",
                 "prosam_jax 0.0.9; 1 x abacus", "python demo.py '<b>'",
                 *controls.MEANING.values()):  # fmt: skip
        assert word in words
    assert sum(tag == "svg" for tag, _ in reader.seen) == 2


def test_rows_are_the_methods_with_their_controls_and_the_others_once(tmp_path):
    runs = [_finished(tmp_path, "vrp", 40.0), _finished(tmp_path, "student_t", 50.0)]
    held = {run.title: methods.finish(run) for run in runs}
    names = [row.name for row in tables.rows(held)]
    own = [controls.UNTRAINED, controls.WRONG]
    common = [controls.EMPTY, controls.CLICK, controls.PRIOR, controls.EVERYTHING]
    assert names == ["VRP-SAM", *own, "ProSAM, Student-t", *own, *common]
    assert [row.miou for row in tables.rows(held)][:3] == [40, 40, 39]
    singles = tables.numbers(BASE, runs).scores
    assert len(singles) == 2 * (1 + len(controls.MEANING))
    assert singles[7] == tables.Score("mask", 0, "student_t", 321, "ProSAM, Student-t", 50.0, 25.0)


def test_the_grid_is_every_combination_once(tmp_path):
    runs = sweep.runs(BASE, tmp_path, 3)
    assert len(runs) == len({run.workdir for run in runs}) == len({run.cfg for run in runs}) == 144
    assert {run.cfg.seed for run in runs[:48]} == {321}
    few = sweep.runs(BASE, tmp_path, 1, ("mask", "point"))
    assert len(few) == 24 and set(few) < set(runs)
    for run in runs:
        cfg = run.cfg
        names = (cfg.data.annotation, cfg.data.fold, cfg.distribution.name, cfg.seed)
        assert run.workdir.name == "{}-fold{}-{}-seed{}".format(*names)
        assert cfg.eval.controls and cfg.train.eval_every == -1


def _scores():
    """Numbers whose means are easily told: 10 per annotation, 1 per fold, 0.5 per seed."""
    return [
        tables.Score(annotation, fold, method, seed, name, 10 * a + fold + 0.5 * seed, 80.0)
        for a, annotation in enumerate(ANNOTATIONS)
        for fold in range(4)
        for method in sweep.METHODS
        for seed in (1, 2, 3)
        for name in (methods.TITLES[method], *controls.MEANING)
    ]


def test_tables_hold_mean_and_deviation_over_the_seeds():
    table = tables.markdown(_scores(), "how").splitlines()
    assert "| **VRP-SAM** | 2.50 ± 0.50 | 12.50 ± 0.50 | 22.50 ± 0.50 | 32.50 ± 0.50 |" in table
    assert any(x.startswith("| VRP-SAM: reference of a wrong class | 2.50 ±") for x in table)
    assert any(x.startswith("| empty prompt | 2.50 ±") for x in table)
    cells = " | ".join(f"{10 + fold + 1:.2f} ± 0.50" for fold in range(4))
    assert f"| box | ProSAM, Gaussian | {cells} | 12.50 ± 0.50 | 80.00 |" in table


def test_tables_hold_the_annotations_that_there_are():
    some = [x for x in _scores() if x.annotation in ("box", "point")]
    table = tables.markdown(some, "how").splitlines()
    assert table.count("| | box | point |") == 2
    assert "| **VRP-SAM** | 12.50 ± 0.50 | 32.50 ± 0.50 |" in table


def test_differences_are_taken_run_by_run():
    found = [
        dataclasses.replace(x, miou=x.miou + 1 + x.seed) if x.method == "student_t" else x
        for x in _scores()
    ]
    table = tables.markdown(found, "how").splitlines()
    # 2, 3, 4 in each of four folds: their deviation is sqrt(8 / 11), over sqrt(12).
    assert "| ProSAM, Student-t than VRP-SAM |" + " +3.0 ± 0.2 |" * 4 in table
    assert "| ProSAM, Gaussian than VRP-SAM |" + " +0.0 ± 0.0 |" * 4 in table
    assert "| ProSAM, Student-t than click at the prior's peak |" + " +0.0 ± 0.0 |" * 4 in table


def test_models_trained_with_masks_are_compared_with_what_was_trained_with_other_marks():
    shown = [
        dataclasses.replace(x, name=other_annotations.MASKED, miou=x.miou + 1 + x.seed)
        for x in _scores()
        if x.annotation in other_annotations.SHOWN and x.name == methods.TITLES[x.method]
    ]
    table = other_annotations.table(shown + _scores()).splitlines()
    title = "**ProSAM, Gaussian, trained with masks**"
    # in the order of SHOWN; its seeds' means lie 1.5 apart
    assert f"| {title} | 15.50 ± 1.50 | 25.50 ± 1.50 | 35.50 ± 1.50 |" in table
    assert table.count("| more than trained with such marks |" + " +3.0 ± 0.2 |" * 3) == 3
    assert table.count("| more than click at the prior's peak |" + " +3.0 ± 0.2 |" * 3) == 3


def test_the_table_says_who_made_its_numbers(tmp_path):
    runs = [_finished(tmp_path, "vrp", 40.0), _finished(tmp_path, "student_t", 50.0)]
    file = runs[1].workdir / "results.json"
    other = json.loads(file.read_text()) | {"versions": {"prosam_jax": "0.1.0"}}
    file.write_text(json.dumps(other))
    note = tables.note(tables.numbers(BASE, runs))
    assert note.startswith("2 runs of 60 steps of 2 episodes, 1,000 test episodes each")
    made = "seeds 321 of mask; prosam_jax 0.0.9; 1 x abacus; or prosam_jax 0.1.0; 1 x abacus."
    assert note.endswith(made)


def test_runs_are_added_to_a_file_of_the_same_settings(tmp_path, capsys):
    found, path = (
        tables.numbers(BASE, [_finished(tmp_path, "vrp", 40.0)]),
        tmp_path / "results.json",
    )
    assert tables.together(found, path) == found
    tables.write_numbers(path, found)
    assert len(path.read_text().splitlines()) > len(found.scores)
    assert tables.together(found, path) == found  # the same seed takes the place of itself
    later = [dataclasses.replace(x, seed=320, miou=7.0) for x in found.scores]
    newer = dataclasses.replace(found, made_by=["another"], scores=later)
    both = tables.together(newer, path)
    assert both.scores == [*later, *found.scores]
    assert both.made_by == [*found.made_by, "another"]
    assert "seeds 320, 321 of mask; prosam_jax 0.0.9; 1 x abacus; or another." in tables.note(both)
    box = dataclasses.replace(
        found, scores=[dataclasses.replace(x, annotation="box") for x in later]
    )
    assert "seeds 321 of mask; seeds 320 of box; " in tables.note(tables.together(box, path))
    assert not capsys.readouterr().out
    other = dataclasses.replace(newer, frozen={"sam": "another"})
    assert tables.together(other, path) == other
    assert "is of other settings or frozen weights: its numbers are" in capsys.readouterr().out


def test_a_document_keeps_its_words_around_the_table(tmp_path):
    path = tmp_path / "docs" / "results.md"
    tables.write_markdown(path, "one")
    assert path.read_text().startswith("# Results\n")
    path.write_text(path.read_text().replace("# Results", "# Results\n\nwords") + "\nmore words\n")
    tables.write_markdown(path, "two")
    text = path.read_text()
    assert "one" not in text
    assert re.search(r"words\n\n<!-- .*begin -->\ntwo\n<!-- .*end -->\n\nmore words\n$", text)


@pytest.mark.slow
def test_processes_tell_what_came_of_their_runs(tmp_path, capsys):
    done = [_finished(tmp_path, method, 40.0) for method in ("vrp", "gaussian", "student_t")]
    sweep.finish(done, jobs=2, shared=tmp_path)
    told = capsys.readouterr().err
    assert len(re.findall(r"mIoU 40\.00 in 0:00:0\d; \d of 3", told)) == 3
    lost = methods.run_of(BASE, tmp_path, "lost", {"sam.weights": "none.safetensors"})
    with pytest.raises(ValueError, match=r"lost: none\.safetensors is missing; make it with"):
        sweep.finish([lost, done[0]], jobs=1, shared=tmp_path)
    assert (tmp_path / "lost" / "log.txt").is_file()
    assert "mIoU 40.00" in capsys.readouterr().err  # one bad run does not stop the others
