import hashlib
import pathlib
import subprocess
import sys

import pytest
from fake_voc import write_voc

from prosam_jax.config import Config
from prosam_jax.data import datasets, episode_list

ROOT = pathlib.Path(__file__).parents[1]


def test_the_command_prints_what_its_digest_is_of(tmp_path):
    root = write_voc(tmp_path / "VOC2012")
    command = [sys.executable, "-m", "prosam_jax.data.episodes", "--list", "--split=train"]
    settings = [f"--config.data.root={root}", "--config.data.fold=1", "--config.seed=5"]
    done = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, last = done.stdout.splitlines()
    assert first.startswith("Pascal-5i fold 1 train: NOT the published list, 5 images instead of")
    assert last == f"5 episodes, sha256 {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
    cfg = Config.from_dict({"seed": 5, "data": {"root": str(root), "fold": 1}})
    source = datasets.episodes(cfg.data, "train", seed=5)
    assert lines == [str(source.spec(i)) for i in range(5)]


@pytest.mark.parametrize(("test", "classes"), [("pascal_disjoint", 4), ("pascal_standard", 5)])
def test_a_run_on_coco_is_tested_on_pascal(tmp_path, test, classes):
    voc = write_voc(tmp_path, classes=(2, 6, 7, 13))
    settings = {"name": "coco", "root": "not there", "fold": 1}
    data = settings | {"test": test, "test_root": str(voc)}
    cfg = Config.from_dict({"data": data, "eval": {"episodes": 30}})
    source = episode_list.source(cfg, "test")
    assert len(source.fold.classes) == classes
    assert source.fold.rule.name.startswith(f"COCO to Pascal, {test.removeprefix('pascal_')}")
    wanted = {2, 6, 13} if classes == 4 else {6, 7}
    assert {source.spec(i).class_id for i in range(30)} == wanted
    with pytest.raises(ValueError, match=r"is not set: pass --config.data.test_root=FOLDER; it"):
        episode_list.source(Config.from_dict({"data": settings | {"test": test}}), "test")
    with pytest.raises(ValueError, match=r"data.test='pascal_\w+' needs data.name='coco', not"):
        Config.from_dict({"data": {"test": test}})
