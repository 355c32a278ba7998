"""The page of a comparison: whole, safe and of the dataset that the runs were made on."""

import base64
import dataclasses
import io

import jinja2
import pytest
from finished_runs import CLASS, finished
from pages import read, read_whole
from PIL import Image
from small import small_config

from prosam_jax.comparison import report
from prosam_jax.data import datasets, folds
from prosam_jax.evaluation import controls
from prosam_jax.report import html as page


def test_the_report_is_whole_and_asks_nobody_for_anything(tmp_path):
    runs = [finished(tmp_path, "vrp", 40.0), finished(tmp_path, "student_t", 50.0)]
    report.write(tmp_path / "report.html", runs, "python demo.py '<b>'")
    reader = read_whole(tmp_path / "report.html")
    sources = [attrs["src"] for tag, attrs in reader.seen if tag == "img"]
    # Reference, target, truth, two predictions, one map, the wrong reference and its prediction.
    assert len(sources) == 3 * 8
    for source in sources:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (32, 32)
    words = reader.words()
    for word in ("VRP-SAM", "ProSAM, Student-t", "50.00", "39.00", "seed 321", "0.44", "0:01:00",
                 "prosam_jax 0.0.9; 1 x abacus", "python demo.py '<b>'",
                 *controls.MEANING.values()):  # fmt: skip
        assert word in words
    assert sum(tag == "svg" for tag, _ in reader.seen) == 2


def test_names_are_words_whatever_their_signs(tmp_path):
    report.write(tmp_path / "report.html", [finished(tmp_path, "vrp", 40.0)], "demo")
    reader = read(tmp_path / "report.html")
    assert not any(tag == "b" for tag, _ in reader.seen)
    assert f": {CLASS}. SAM" in reader.words()
    alts = [attrs["alt"] for tag, attrs in reader.seen if tag == "img"]
    assert alts.count(CLASS) == 3


def test_the_page_is_of_the_runs_own_dataset(tmp_path):
    base = small_config(tmp_path / "voc")
    report.write(tmp_path / "report.html", [finished(tmp_path, "vrp", 40.0, base)], "demo")
    reader = read(tmp_path / "report.html")
    assert "ProSAM on Pascal-5i, fold 1" in reader.words()
    assert "the 15 base classes of fold 1 of Pascal-5i" in reader.words()
    assert f"3 episodes of 1 other class: {CLASS}." in reader.words()
    assert "Shapes" not in reader.words()


def test_what_was_trained_and_what_is_tested_may_be_of_two_datasets(tmp_path, monkeypatch):
    rule = dataclasses.replace(folds.COCO_20I, name="COCO")
    source = datasets.episodes

    def episodes(cfg, split, **kwargs):
        found = source(cfg, split, **kwargs)
        if split == "test":
            return found
        return dataclasses.replace(found, fold=dataclasses.replace(found.fold, rule=rule))

    monkeypatch.setattr(datasets, "episodes", episodes)
    report.write(tmp_path / "report.html", [finished(tmp_path, "vrp", 40.0)], "demo")
    words = read(tmp_path / "report.html").words()
    assert "of fold 0 of COCO and scored on 3 episodes of 1 class of Shapes-5i" in words


def test_a_template_that_lacks_a_value_is_not_filled():
    with pytest.raises(jinja2.UndefinedError, match="is undefined"):
        page.render("comparison.html.jinja")
