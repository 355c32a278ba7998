import dataclasses
import json
import math

import pytest
from messages import check_line
from ml_collections import ConfigDict

from prosam_jax import config
from prosam_jax.cli import settings
from prosam_jax.config import Config, Role, SAMConfig, replaced
from prosam_jax.config.fields import about, flat, leaves
from prosam_jax.errors import UserError

RECIPES = settings.recipes()


def test_every_setting_has_a_role():
    assert len(leaves(Config)) > 40
    for name in leaves(Config):
        assert isinstance(about(Config, name).role, Role), name
    assert {about(Config, name).role for name in leaves(Config)} == set(Role)


def test_settings_survive_the_round_trip():
    cfg = Config.from_dict({"seed": 5, "train": {"steps": 7}, "data": {"fold": 3}})
    assert (cfg.seed, cfg.train.steps, cfg.data.fold) == (5, 7, 3)
    assert Config.from_dict(config.to_dict(cfg)) == cfg
    assert Config.from_dict(ConfigDict(config.to_dict(cfg))) == cfg


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**32),
        ("eval.seed", 2**32),
        ("data.fold", 4),
        ("data.fold", 7),
        ("data.shots", 0),
        ("prompt.dim", 30),
        ("prompt.num_heads", 0),
        ("prompt.dropout", 1.0),
        ("prompt.dropout", -0.1),
        ("distribution.nu", 0.0),
        ("distribution.samples", 0),
        ("distribution.entropy_weight", math.inf),
        ("sam.image_size", 1000),
        ("train.batch_size", 0),
        ("train.eval_every", -2),
        ("train.weight_decay", -1.0),
        ("train.learning_rate", -1e-4),
        ("train.learning_rate", math.nan),
        ("train.learning_rate", math.inf),
    ],
)
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(UserError) as error:
        replaced(Config(), {name: value})
    check_line(error, name, repr(value))


@pytest.mark.parametrize(
    "name", [name for name, field in leaves(Config).items() if field.type is int]
)
def test_no_whole_number_is_without_end(name):
    """Another's file may ask for a million processes, or for pictures that fit no memory."""
    says = about(Config, name)
    largest = says.below - 1 if says.most is None else says.most
    with pytest.raises(UserError) as error:
        replaced(Config(), {name: largest + 1})
    check_line(error, f"{name}={largest + 1} must be {'below' if says.most is None else 'at most'}")
    if name not in ("prompt.dim", "prompt.num_heads"):  # which depend on the width of SAM
        assert flat(replaced(Config(), {name: largest}))[name] == largest


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 2**32 - 1),
        ("data.fold", 3),
        ("prompt.dropout", 0.0),
        ("train.weight_decay", 0.0),
        ("train.eval_every", -1),
        ("distribution.nu", 7),
    ],
)
def test_values_at_the_ends_of_a_range_are_taken(name, value):
    held = flat(replaced(Config(), {name: value}))[name]
    assert held == value
    assert type(held) is type(flat(Config())[name])


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("train.steps", 1.5, "a whole number"),
        ("train.learning_rate", "fast", "a number"),
        ("data.fold", True, "a whole number"),
        ("data.fold", "1", "a whole number"),
        ("data.root", 7, "a text"),
        ("data.name", 3, "a text"),
        ("eval.controls", 1, "true or false"),
        ("seed", None, "a whole number"),
    ],
)
def test_values_of_another_type_are_named(name, value, wanted):
    with pytest.raises(UserError) as error:
        replaced(Config(), {name: value})
    check_line(error, name, repr(value), wanted)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("sam.model", "vit_x", "vit_h"),
        ("sam.dtype", "float8", "float32"),
        ("sam.attention", "flash", "plain"),
        ("backbone.name", "resnet5", "resnet50"),
        ("distribution.name", "student", "student_t"),
        ("data.name", "pascl", "pascal"),
        ("data.annotation", "points", "point"),
        ("data.downsample", "cover", "coverage"),
        ("data.empty_annotation", "redrw", "redraw"),
        ("train.schedule", "cosin", "cosine"),
    ],
)
def test_unknown_choices_are_named_with_the_nearest(name, value, nearest):
    with pytest.raises(UserError) as error:
        replaced(Config(), {name: value})
    check_line(error, name, repr(value), nearest)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"sam": {"modle": "tiny"}}, ("sam.modle", "sam.model")),
        ({"sma": {"model": "tiny"}}, ("sma", "sam")),
        ({"sam": "tiny"}, ("sam='tiny'", "group")),
        ({"sam": {"attention": "cudnn"}}, ("sam.attention", "sam.dtype", "bfloat16")),
        ({"sam": {"weights": "packaged"}}, ("sam.weights", "sam.model", "shapes", "vit_h")),
        ({"backbone": {"weights": "packaged"}}, ("backbone.weights", "backbone.name", "shapes")),
        ({"prompt": {"dim": 128}}, ("prompt.dim=128", "256")),
        ({"prompt": {"num_heads": 3}}, ("prompt.num_heads=3", "prompt.dim=256")),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_named(given, named):
    with pytest.raises(UserError) as error:
        Config.from_dict(given)
    check_line(error, *named)


UNREAD = [
    ({"data.novel": "fox"}, "data.name", {"data.name": "folder"}),
    ({"data.bad_files": "skip"}, "data.name", {"data.name": "folder"}),
    ({"data.name": "shapes", "data.root": "x"}, "data.name", {"data.name": "coco"}),
    ({"data.name": "shapes", "data.decode": "fast"}, "data.name", {"data.name": "pascal"}),
    ({"data.test": "pascal_disjoint"}, "data.name", {"data.name": "coco"}),
    (
        {"data.name": "coco", "data.test_root": "voc"},
        "data.test",
        {"data.test": "pascal_standard"},
    ),
    (
        {"distribution.name": "vrp", "distribution.samples": 3},
        "distribution.name",
        {"distribution.name": "gaussian"},
    ),
    (
        {"distribution.name": "gaussian", "distribution.nu": 3.0},
        "distribution.name",
        {"distribution.name": "t3vae"},
    ),
    (
        {"distribution.prior_scale": 0.3},
        "distribution.prior_weight",
        {"distribution.prior_weight": 0.1},
    ),
    (
        {"distribution.name": "gaussian", "distribution.shared_delta": True},
        "distribution.name",
        {"distribution.name": "student_t"},
    ),
    ({"cache.dtype": "int8"}, "cache.dir", {"cache.dir": "x"}),
    ({"train.steps": 5, "train.epochs": 3}, "train.steps", {"train.steps": 0}),
    (
        {"train.schedule": "cosine", "train.restart_epochs": 3},
        "train.schedule",
        {"train.schedule": "warm_restarts"},
    ),
]


@pytest.mark.parametrize(("given", "read_with", "mended"), UNREAD, ids=lambda x: str(x)[:40])
def test_what_is_set_and_not_read_is_refused(given, read_with, mended):
    with pytest.raises(UserError) as error:
        replaced(Config(), given)
    check_line(error, list(given)[-1], read_with)
    kept = flat(replaced(Config(), given | mended))
    assert kept.items() >= (given | mended).items()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"scale": "fixed", "min_scale": 0.1}, ["min_scale=0.1", "scale=fixed"]),
        ({"scale": "fixed", "entropy_weight": 0.1}, ["entropy_weight=0.1", "scale=fixed"]),
        ({"scale": "fixed", "prior_weight": 0.1}, ["prior_weight=0.1", "scale=fixed"]),
        ({"objective": "laplacian", "draws": "stratified"}, ["draws=stratified", "laplacian"]),
        ({"objective": "laplacian", "shared_delta": True}, ["shared_delta=True", "laplacian"]),
        ({"objective": "laplacian", "nu": 2.0}, ["nu=2.0", "above 2"]),
    ],
)
def test_settings_of_the_distribution_that_do_not_go_together_are_refused(given, named):
    with pytest.raises(UserError) as error:
        Config.from_dict({"distribution": given})
    check_line(error, *named)


def test_the_expansion_needs_a_variance_only_where_there_may_be_none():
    for given in ({"name": "t3vae", "nu": 1.0}, {"name": "student_t", "nu": 2.5}):
        cfg = Config.from_dict({"distribution": {"objective": "laplacian", **given}})
        assert cfg.distribution.nu == given["nu"]


def test_what_is_not_read_any_more_becomes_its_default():
    student_t = replaced(
        Config(), {"distribution.nu": 3.0, "distribution.samples": 2, "data.root": "voc"}
    )
    vrp = replaced(student_t, {"distribution.name": "vrp"})
    assert vrp == replaced(Config(), {"distribution.name": "vrp", "data.root": "voc"})
    with pytest.raises(UserError) as error:
        replaced(student_t, {"distribution.name": "vrp", "distribution.samples": 2})
    check_line(error, "distribution.samples=2", "vrp")
    shapes = replaced(student_t, {"data.name": "shapes"})
    assert (shapes.data.root, shapes.distribution.nu) == ("", 3.0)
    assert replaced(replaced(Config(), {"train.epochs": 9}), {"train.steps": 4}).train.epochs == 100


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("data.fld", "data.fold"),
        ("dta.fold", ""),
        ("foo.bar", ""),
        ("seed.x", ""),
        ("data", ""),
        ("data.cueless", "data.empty_annotation"),
    ],
)
def test_unknown_names_are_named_with_the_nearest(name, nearest):
    for call in (config.check_setting, lambda name: replaced(Config(), {name: 1})):
        with pytest.raises(UserError) as error:
            call(name)
        check_line(error, name, nearest)
    config.check_setting("data.fold")


def test_settings_are_read_from_a_runs_file(tmp_path):
    path = tmp_path / "config.json"
    cfg = Config.from_dict({"data": {"fold": 2}})
    config.write_config(cfg, path)
    assert config.read_config(path) == cfg
    path.write_text(json.dumps({"evla": {"seed": 1}}))
    with pytest.raises(UserError) as error:
        config.read_config(path)
    check_line(error, "evla.seed".partition(".")[0], "eval")
    path.write_text(json.dumps({"train": "x"}))
    with pytest.raises(UserError) as error:
        config.read_config(path)
    check_line(error, f"{path} is damaged", "(train='x' must be a group of settings); restore it")
    path.write_text('{"seed": 3')
    with pytest.raises(UserError) as error:
        config.read_config(path)
    check_line(error, str(path))
    with pytest.raises(UserError) as error:
        config.read_config(tmp_path / "none.json")
    check_line(error, str(tmp_path / "none.json"), "--workdir", "restore the file")


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_hold_what_differs_from_the_defaults(name):
    values = settings.recipe(name)
    cfg = replaced(Config(), values)
    default = flat(Config())
    # Of the benchmark that a recipe is for, a reader wants to be told.
    same = {x for x, value in values.items() if value == default[x]} - {"data.name"}
    assert not same
    assert flat(cfg).items() >= values.items()


def test_a_recipe_may_be_a_config_dict(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        "    return ConfigDict({'seed': 4, 'data': {'fold': 2}})\n"
    )
    assert settings.recipe(str(path)) == {"seed": 4, "data.fold": 2}


def test_the_papers_recipe():
    cfg = replaced(Config(), settings.recipe("pascal"))
    assert cfg == Config()
    assert (cfg.seed, cfg.train.epochs, cfg.train.restart_epochs) == (321, 100, 15)
    assert (cfg.train.learning_rate, cfg.train.weight_decay) == (1e-4, 1e-6)
    assert (cfg.distribution.samples, cfg.distribution.nu, cfg.prompt.num_queries) == (10, 5, 50)


def test_sizes_of_sam():
    assert [SAMConfig.named(n).embed_dim for n in ("vit_b", "vit_l", "vit_h")] == [768, 1024, 1280]
    assert SAMConfig.vit_b().embedding_size == (64, 64)
    assert dataclasses.replace(SAMConfig(), image_size=(100, 50)).embedding_size == (6, 3)
    with pytest.raises(UserError) as error:
        dataclasses.replace(SAMConfig(), image_size=(8, 64))
    check_line(error, "image_size=(8, 64)", "patch_size=16")
    sam = config.SAMSettings(model="tiny", image_size=64, dtype="bfloat16").architecture()
    assert (sam.image_size, sam.dtype) == ((64, 64), "bfloat16")


def test_paths_may_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/there")
    given = {
        "data.root": "~/voc",
        "sam.weights": "~/{model}.safetensors",
        "prompt.weights": "~nobodyatall/x",
        "data.train_list": "~/list",  # no path
    }
    cfg = replaced(Config(), given)
    assert (cfg.data.root, cfg.sam.weight_file()) == ("/there/voc", "/there/vit_h.safetensors")
    assert (cfg.prompt.weights, cfg.data.train_list) == ("~nobodyatall/x", "~/list")
