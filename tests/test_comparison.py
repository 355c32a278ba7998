"""Results of runs and their tables, on results that were never computed."""

import dataclasses
import json
import re

import numpy as np
import pytest
from finished_runs import BASE, example, finish, finished

from prosam_jax.comparison import methods, sweep, tables
from prosam_jax.config import ANNOTATIONS, to_dict, write_config
from prosam_jax.errors import UserError
from prosam_jax.evaluation import controls, results
from studies import other_annotations


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
    singles = tables.numbers(BASE, runs).scores
    assert len(singles) == 2 * (1 + len(controls.MEANING))
    assert singles[7] == tables.Score("mask", 0, "student_t", 321, "ProSAM, Student-t", 50.0, 25.0)


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


def test_tables_hold_the_folds_and_methods_that_there_are():
    some = [
        x
        for x in _scores()
        if x.annotation == "mask" and x.method != "gaussian" and (x.fold, x.seed) == (2, 1)
    ]
    table = tables.markdown(some, "how").splitlines()
    assert "mIoU in percent, fold 2:" in table
    assert "| **VRP-SAM** | 2.50 |" in table
    assert "| | | fold 2 | mean | FB-IoU |" in table
    assert "| mask | ProSAM, Student-t | 2.50 | 2.50 | 80.00 |" in table
    assert "| ProSAM, Student-t than VRP-SAM | +0.0 |" in table
    assert not any("Gaussian" in line for line in table)


def test_means_are_over_seeds_that_have_all_folds():
    some = [
        x
        for x in _scores()
        if (x.annotation == "mask" and x.seed != 3) or (x.annotation == "box" and x.fold < 2)
    ]
    some = [x for x in some if not (x.fold == 3 and x.seed == 2)]
    table = tables.markdown(some, "how").splitlines()
    assert "mIoU in percent, mean of 4 folds:" in table
    assert "| **VRP-SAM** | 2.00 | - |" in table  # the seed 1 alone
    assert "| box | VRP-SAM | - | - | - | - | - | - |" in table


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
    assert table.count("| more than trained with such annotations |" + " +3.0 ± 0.2 |" * 3) == 3
    assert table.count("| more than click at the prior's peak |" + " +3.0 ± 0.2 |" * 3) == 3


def test_runs_with_masks_are_scored_with_other_annotations(tmp_path):
    (run,) = (
        x
        for x in sweep.runs(BASE, tmp_path, 1, ["mask"])
        if x.workdir.name.endswith("fold0-vrp-seed321")
    )
    finish(run, 40.0)
    write_config(run.cfg, run.workdir / "config.json")
    (again,) = other_annotations.trained(tmp_path)
    assert (again.cfg, again.workdir) == (run.cfg, run.workdir)
    rules = {}
    for i, how in enumerate(again.scorings):
        cfg = methods.scored_with(again, how)
        rules[cfg.data.annotation] = cfg.data.downsample
        assert not cfg.eval.controls
        finish(again, 30.0 + i, scoring=how)
    assert rules == {"box": "nearest", "scribble": "nearest", "point": "coverage"}
    assert methods.is_finished(again)
    found = {x.annotation: x.miou for x in other_annotations.scores([again])}
    assert found == {"box": 30.0, "scribble": 31.0, "point": 32.0}


def test_the_table_says_who_made_its_numbers(tmp_path):
    runs = [finished(tmp_path, "vrp", 40.0), finished(tmp_path, "student_t", 50.0)]
    file = runs[1].workdir / "results.json"
    other = json.loads(file.read_text()) | {"versions": {"prosam_jax": "0.1.0"}}
    file.write_text(json.dumps(other))
    note = tables.note(tables.numbers(BASE, runs))
    assert note.startswith("2 runs of 60 steps of 2 episodes, 1,000 test episodes each")
    longer = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, steps=0, epochs=7))
    found = dataclasses.replace(tables.numbers(BASE, runs), settings=to_dict(longer))
    assert tables.note(found).startswith("2 runs of 7 epochs in steps of 2 episodes, ")
    made = "seeds 321 of mask; prosam_jax 0.0.9; 1 x abacus; or prosam_jax 0.1.0; 1 x abacus."
    assert note.endswith(made)


def test_runs_are_added_to_a_file_of_the_same_settings(tmp_path, capsys):
    found, path = (
        tables.numbers(BASE, [finished(tmp_path, "vrp", 40.0)]),
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
    assert not capsys.readouterr().err
    other = dataclasses.replace(newer, frozen={"sam": "another"})
    assert tables.together(other, path) == other
    assert str(path) in capsys.readouterr().err


def test_a_document_keeps_its_words_around_the_table(tmp_path):
    path = tmp_path / "docs" / "results.md"
    tables.write_markdown(path, "one")
    assert path.read_text().startswith("# Results\n")
    path.write_text(path.read_text().replace("# Results", "# Results\n\nwords") + "\nmore words\n")
    tables.write_markdown(path, "two")
    text = path.read_text()
    assert "one" not in text
    assert re.search(r"words\n\n<!-- .*begin -->\ntwo\n<!-- .*end -->\n\nmore words\n$", text)


def test_a_run_of_an_older_version_is_scored_again(tmp_path):
    run = finished(tmp_path, "vrp", 40.0)
    path = run.workdir / "results.json"
    held = json.loads(path.read_text())
    for change in ({"prior_threshold": ...}, {"controls": {"another": {}}}, {"config": 3}):
        other = {k: v for k, v in (held | change).items() if v is not ...}
        path.write_text(json.dumps(other))
        assert methods.results(run) is None
    for text in ("[]", "3", "\xff"):
        path.write_text(text, encoding="latin-1")
        assert methods.results(run) is None
    path.write_text(json.dumps(held))
    assert methods.results(run) == held
    examples = run.workdir / "examples.npz"
    whole = examples.read_bytes()
    np.savez(examples, prediction=np.zeros(1))
    assert methods.results(run) is None
    examples.write_bytes(whole[:99])
    assert methods.results(run) is None
    examples.write_bytes(whole)
    assert methods.results(run) == held


def test_a_damaged_file_of_numbers_is_not_replaced(tmp_path):
    path = tmp_path / "results.json"
    new = tables.numbers(BASE, [finished(tmp_path / "runs", "vrp", 40.0)])
    tables.write_numbers(path, new)
    held = json.loads(path.read_text())
    for wrong in ([], {}, held | {"scores": [{"x": 1}]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=str(path)):
            tables.together(new, path)
