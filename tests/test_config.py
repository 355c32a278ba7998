import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from configs import pascal
from prosam_jax import config
from prosam_jax.config import Config, SAMConfig


def test_settings_survive_the_round_trip():
    cfg = Config.from_dict({"seed": 5, "train": {"steps": 7}, "data": {"fold": 3}})
    assert (cfg.seed, cfg.train.steps, cfg.data.fold) == (5, 7, 3)
    assert Config.from_dict(config.to_dict(cfg)) == cfg
    assert Config.from_dict(ConfigDict(config.to_dict(cfg))) == cfg


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sam": {"modle": "tiny"}}, "unknown setting sam.modle; nearest: sam.model"),
        ({"sma": {}}, "unknown setting sma; nearest: sam"),
        ({"sam": {"model": "vit_x"}}, "sam.model='vit_x' is not known; nearest: vit_l, vit_h"),
        ({"sam": {"dtype": "float8"}}, "sam.dtype='float8' is not known; nearest: float32"),
        ({"sam": {"attention": "cudnn"}}, "sam.attention='cudnn' needs sam.dtype='bfloat16'"),
        ({"sam": {"attention": "flash"}}, "sam.attention='flash' is not known"),
        ({"sam": "tiny"}, "sam='tiny' must be a group of settings"),
        ({"train": {"steps": 1.5}}, "train.steps=1.5 must be of type int, not float"),
        ({"train": {"batch_size": 0}}, "train.batch_size=0 must be at least 1"),
        ({"data": {"fold": 4}}, "data.fold=4 must be 0, 1, 2 or 3"),
        (
            {"data": {"annotation": "points"}},
            "data.annotation='points' is not known; nearest: point",
        ),
        ({"data": {"downsample": "cover"}}, "downsample='cover' is not known; nearest: coverage"),
        ({"data": {"bad_files": "stopp"}}, "data.bad_files='stopp' is not known; nearest: stop"),
        ({"data": {"fold": True}}, "data.fold=True must be of type int, not bool"),
        ({"prompt": {"dim": 30}}, "prompt.dim=30 must be a multiple of 4"),
        ({"prompt": {"dim": 128}}, "prompt.dim=128 must be 256, as wide as SAM's"),
        ({"prompt": {"num_heads": 0}}, "prompt.num_heads=0 must be at least 1"),
        ({"sam": {"image_size": 1000}}, "sam.image_size=1000 must be 0 or a multiple of 16"),
        ({"prompt": {"dropout": 1.0}}, r"prompt.dropout=1.0 must lie in \[0, 1\)"),
        ({"distribution": {"name": "student"}}, "nearest: student_t"),
        ({"distribution": {"nu": 0.0}}, "distribution.nu=0.0 must be above 0"),
        ({"seed": -1}, "seed=-1 must be at least 0"),
        ({"train": {"learning_rate": float("nan")}}, "learning_rate=nan must be at least 0"),
    ],
    ids=lambda x: str(x)[:30],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(settings)


def test_integers_are_taken_for_floats():
    assert Config.from_dict({"distribution": {"nu": 7}}).distribution.nu == 7.0


def test_names_of_settings_are_checked():
    config.check_setting("data.fold")
    config.check_setting("data")
    for path, nearest in (("data.fld", "data.fold"), ("dta.fold", "data"), ("seed.x", "")):
        with pytest.raises(ValueError, match=f"unknown setting {path}.*{nearest}"):
            config.check_setting(path)


def test_saved_settings_are_read_with_changes(tmp_path):
    path = tmp_path / "config.json"
    cfg = Config.from_dict({"data": {"fold": 2}})
    config.write_config(cfg, path)
    assert config.read_config(path) == cfg
    changed = config.replaced(cfg, {"eval.episodes": 10})
    assert changed.eval.episodes == 10
    assert config.changed(cfg, changed, ()) == ["eval.episodes: 1000 -> 10"]
    assert config.changed(cfg, changed, ("eval.episodes",)) == []
    moved = config.replaced(cfg, {"sam.weights": "elsewhere.safetensors"})
    assert config.changed(cfg, moved, ()) == []
    drawn = config.replaced(cfg, {"sam.weights": "random"})
    assert len(config.changed(cfg, drawn, ())) == 1
    tuned = config.replaced(cfg, {"prompt.weights": "a.safetensors"})
    assert config.changed(cfg, tuned, ()) == ["prompt.weights:  -> a.safetensors"]
    elsewhere = config.replaced(cfg, {"prompt.weights": "b.safetensors"})
    assert config.changed(tuned, elsewhere, ()) == []
    path.write_text(json.dumps({"evla": {}}))
    with pytest.raises(ValueError, match="unknown setting evla"):
        config.read_config(path)
    path.write_text('{"seed": 3')
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        config.read_config(path)
    with pytest.raises(ValueError, match="--workdir must name the workdir of a training run"):
        config.read_config(tmp_path / "none.json")


def test_the_papers_recipe():
    cfg = Config.from_dict(pascal.get_config())
    assert cfg == Config()
    assert (cfg.seed, cfg.train.epochs, cfg.train.restart_epochs) == (321, 100, 15)
    assert (cfg.train.learning_rate, cfg.train.weight_decay) == (1e-4, 1e-6)
    assert (cfg.distribution.samples, cfg.distribution.nu, cfg.prompt.num_queries) == (10, 5, 50)


def test_sizes_of_sam():
    assert [SAMConfig.named(n).embed_dim for n in ("vit_b", "vit_l", "vit_h")] == [768, 1024, 1280]
    assert SAMConfig.vit_b().embedding_size == (64, 64)
    assert dataclasses.replace(SAMConfig(), image_size=(100, 50)).embedding_size == (6, 3)
    with pytest.raises(ValueError, match=r"image_size=\(8, 64\) must be at least patch_size=16"):
        dataclasses.replace(SAMConfig(), image_size=(8, 64))
    settings = config.SAMSettings(model="tiny", image_size=64, dtype="bfloat16")
    assert settings.architecture().image_size == (64, 64)
    assert settings.architecture().dtype == "bfloat16"
