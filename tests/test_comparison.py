"""Results of runs and their tables, on results that were never computed."""

import dataclasses
import json

import numpy as np
from finished_runs import example, finished

from prosam_jax.comparison import methods, tables
from prosam_jax.evaluation import controls, results


def test_only_results_of_the_very_same_run_count(tmp_path):
    run = finished(tmp_path, "vrp", 40.0)
    assert methods.finish(run)["miou"] == 40.0  # nothing is trained
    longer = dataclasses.replace(run.cfg, train=dataclasses.replace(run.cfg.train, steps=7))
    assert methods.results(dataclasses.replace(run, cfg=longer)) is None
    frozen = json.loads((run.workdir / "frozen.json").read_text())
    other = {**frozen, "sam": {"architecture": "tiny", "arrays_sha256": "0" * 64}}
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
    examples = [example(i, uncertain=True) for i in range(2)]
    results.save_examples(tmp_path / "x.npz", examples)
    for found, kept in zip(results.load_examples(tmp_path / "x.npz"), examples, strict=True):
        assert found.class_name == kept.class_name
        assert found.controls.keys() == kept.controls.keys()
        arrays = [(*x.episode, x.prediction, *x.controls.values(), x.uncertainty)
                  for x in (found, kept)]  # fmt: skip
        for x, y in zip(*arrays, strict=True):
            np.testing.assert_array_equal(x, y)


def test_rows_are_the_methods_with_their_controls_and_the_others_once(tmp_path):
    runs = [finished(tmp_path, "vrp", 40.0), finished(tmp_path, "student_t", 50.0)]
    held = {run.title: methods.finish(run) for run in runs}
    names = [row.name for row in tables.rows(held)]
    own = [controls.UNTRAINED, controls.WRONG]
    common = [controls.EMPTY, controls.CLICK, controls.PRIOR, controls.EVERYTHING]
    assert names == ["VRP-SAM", *own, "ProSAM, Student-t", *own, *common]
    assert [row.miou for row in tables.rows(held)][:3] == [40, 40, 39]


def test_a_run_of_an_older_version_is_scored_again(tmp_path):
    run = finished(tmp_path, "vrp", 40.0)
    path = run.workdir / "results.json"
    held = json.loads(path.read_text())
    for change in (
        {"prior_threshold": ...},
        {"controls": {"another": {}}},
        {"config": 3},
        {"classes": ["ant"]},
        {"classes": {"x": "ant"}},
        {"classes": {"1": "another"}},
        {"lists": [3]},
        {"lists": 3},
        {"controls": 5},
        {"versions": None},
        {"device": 5},
        {"episodes": "3"},
        {"episode_list_sha256": "zz"},
        {"miou": 41.0},
    ):
        other = {k: v for k, v in (held | change).items() if v is not ...}
        path.write_text(json.dumps(other))
        assert methods.results(run) is None
    for text in ("[]", "3", "\xff"):
        path.write_text(text, encoding="latin-1")
        assert methods.results(run) is None
    path.write_text(json.dumps(held))
    assert methods.results(run) == held
    episodes = run.workdir / "episodes.csv"
    lines = episodes.read_text()
    for cut in (lines[:-40], lines[: lines.rindex("\n", 0, -1) + 1], lines[:-2], lines[:70]):
        episodes.write_text(cut)  # within a line, after one, within its last number, all of them
        assert methods.results(run) is None
    episodes.write_text(lines)
    assert methods.results(run) == held
    examples = run.workdir / "examples.npz"
    whole = examples.read_bytes()
    np.savez(examples, prediction=np.zeros(1))
    assert methods.results(run) is None
    examples.write_bytes(whole[:99])
    assert methods.results(run) is None
    examples.write_bytes(whole)
    assert methods.results(run) == held
