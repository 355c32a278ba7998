"""Settings of older versions, and in which settings two runs may differ."""

import pytest
from messages import check_line

from prosam_jax import config
from prosam_jax.config import (
    CHANGES_NO_NUMBER,
    OF_AN_EVALUATION,
    Config,
    Role,
    changed,
    recorded,
    replaced,
)
from prosam_jax.errors import UserError

GOES_ON = CHANGES_NO_NUMBER | {Role.LENGTH}


def test_settings_of_an_older_version_are_read():
    """Under their names of then, with values that were written down though nothing read them."""
    written = config.to_dict(Config())
    written["data"]["cueless"] = "report"
    del written["data"]["empty_annotation"], written["train"]["restart_epochs"]
    written["data"]["name"] = "shapes"
    written["data"]["novel"] = "fox"
    written["data"]["root"] = "somewhere"
    written["distribution"]["name"] = "vrp"
    written["distribution"]["samples"] = 3
    cfg = recorded(written)
    wanted = {"data.name": "shapes", "data.empty_annotation": "report", "distribution.name": "vrp"}
    assert cfg == replaced(Config(), wanted)
    written["data"]["shots"] = 0
    with pytest.raises(UserError) as error:
        recorded(written)
    check_line(error, "data.shots=0")


def differing(before, after, may=()):
    """Names of the settings that differ and must not."""
    old, new = replaced(Config(), before), replaced(Config(), before | after)
    return [line.partition(":")[0] for line in changed(old, new, may)]


def test_differences_are_told_with_both_values():
    (line,) = changed(Config(), replaced(Config(), {"eval.episodes": 10}))
    assert line.startswith("eval.episodes") and "1000" in line and "10" in line
    assert changed(Config(), Config()) == []


@pytest.mark.parametrize(
    ("before", "after", "free"),
    [
        ({}, {"data.root": "elsewhere", "data.workers": 2}, True),
        ({}, {"train.log_every": 3, "eval.batch_size": 9, "eval.pictures": 0}, True),
        ({}, {"train.epochs": 200}, True),
        ({"cache.dir": "x"}, {"cache.dir": "moved"}, True),
        ({}, {"cache.dir": "x", "cache.dtype": "float32"}, True),
        ({"sam.dtype": "bfloat16"}, {"cache.dir": "x"}, True),
        ({}, {"cache.dir": "x"}, False),
        ({"cache.dir": "x"}, {"cache.dir": ""}, False),
        ({"cache.dir": "x"}, {"cache.dtype": "int8"}, False),
        ({"data.name": "folder"}, {"data.bad_files": "skip"}, False),
        ({}, {"data.shots": 5}, False),
        ({}, {"data.decode": "fast"}, False),
        ({}, {"seed": 3}, False),
        ({}, {"train.learning_rate": 1e-3}, False),
        ({}, {"sam.dtype": "bfloat16"}, False),
        ({}, {"sam.model": "vit_b"}, False),
        ({}, {"data.fold": 1}, False),
    ],
    ids=str,
)
def test_what_may_differ_when_a_run_goes_on(before, after, free):
    assert differing(before, after, GOES_ON) == ([] if free else list(after))


@pytest.mark.parametrize(
    ("after", "free"),
    [
        ({"data.shots": 5, "data.annotation": "point", "data.downsample": "coverage"}, True),
        ({"eval.episodes": 5, "eval.seed": 3, "sam.dtype": "bfloat16"}, True),
        ({"data.name": "coco", "data.test": "pascal_disjoint", "data.test_root": "x"}, None),
        ({"train.learning_rate": 1e-3}, False),
        ({"train.epochs": 3}, False),
        ({"data.fold": 2}, False),
        ({"data.image_size": 256}, False),
        ({"prompt.num_queries": 3}, False),
    ],
    ids=str,
)
def test_what_may_differ_in_an_evaluation(after, free):
    found = differing({}, after, OF_AN_EVALUATION)
    assert found == {True: [], False: list(after), None: ["data.name"]}[free]


@pytest.mark.parametrize(
    ("name", "before", "after", "moved"),
    [
        ("sam.weights", "a.safetensors", "b.safetensors", True),
        ("sam.weights", "a.safetensors", "random", False),
        ("backbone.weights", "random", "a.safetensors", False),
        ("prompt.weights", "a.safetensors", "b.safetensors", True),
        ("prompt.weights", "", "a.safetensors", False),
        ("prompt.weights", "a.safetensors", "", False),
    ],
)
def test_weights_may_move_but_not_become_others(name, before, after, moved):
    assert differing({name: before}, {name: after}, GOES_ON) == ([] if moved else [name])
