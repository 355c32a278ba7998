import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import automatic_masks, encoder, episodes, forward, measure, roofline
from benchmarks.gpu import __main__ as gpu
from benchmarks.problem import Problem
from prosam_jax.config import SAMConfig
from torch_models import sam

QUICK = ("agree", "profile", "episodes", "encoder_vit_b", "step_b2")  # others repeat their code


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measure, "Alone", measure.Here)  # starting a process takes seconds
    monkeypatch.setattr(forward, "MATMUL", {"cpu": (64, 2)})
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)


@pytest.mark.parametrize(("model", "giga"), [("vit_b", 972), ("vit_l", 2986), ("vit_h", 5961)])
def test_operations_of_published_encoders(model, giga):
    assert round(SAMConfig.named(model).encoder_operations(padded=True) / 1e9) == giga


@pytest.mark.parametrize("window_size", [5, 0])
def test_operations_are_those_that_pytorch_counts(window_size):
    cfg = dataclasses.replace(SAMConfig.tiny(), image_size=(112, 208), window_size=window_size)
    twin = sam.build(cfg, 0).image_encoder
    with FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, 3, *cfg.image_size))
    assert cfg.encoder_operations(padded=True) == counter.get_total_flops()


def test_encoder_benchmark_runs(quick, tmp_path, capsys):
    arguments = "--model tiny --size 96 --batch 2 --turns 3 --out"
    result = encoder.main([*arguments.split(), str(tmp_path / "out.json")])
    sides = result["batches"][2]["sides"]
    assert list(sides) == [
        "PyTorch eager, float32, malloc default",
        "prosam_jax plain, float32, malloc default",
    ]
    theirs, ours = sides.values()
    assert theirs["over PyTorch"]["median"] == 1
    assert 0 < ours["FLOP"] < theirs["FLOP"]
    assert ours["compile seconds"] > 0
    assert max(result["batches"][2]["largest difference"].values()) < 1e-5
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["batches"]["2"]["sides"] == sides and written["settings"]["model"] == "tiny"
    assert "| prosam_jax plain, float32, malloc default" in capsys.readouterr().out


def test_benchmark_of_automatic_masks_runs(quick, tmp_path, capsys):
    arguments = "--points 4 --picture 60 80 --turns 1 --keep 0.5 --out"
    result = automatic_masks.main([*arguments.split(), str(tmp_path / "out.json")])
    few, all_ = (result["differences"][x] for x in ("without", "with duplicates"))
    assert 1 < few["masks"] < all_["masks"] < 48 and all_["equal masks"] > 0.9 * all_["masks"]
    theirs, ours = result["sides"]
    assert theirs["over segment_anything"]["median"] == 1
    for side in (theirs, ours):  # one turn
        rate = side["points per second"]["median"]
        np.testing.assert_allclose(rate * side["seconds"]["median"], 16)
    assert json.loads((tmp_path / "out.json").read_text())["sides"] == result["sides"]
    assert "| prosam_jax " in capsys.readouterr().out


def test_other_masks_end_a_benchmark():
    def record(pixel, iou, click=0.0):
        mask = {"size": [4, 5], "counts": [pixel, 1, 19 - pixel]}
        where = {"point_coords": [[click, 1.0]], "crop_box": [0, 0, 5, 4], "bbox": [0, 0, 1, 1]}
        return {"segmentation": mask, "predicted_iou": iou, **where}

    wanted = [record(3, 0.5), record(4, 0.25)]
    found = automatic_masks.compare([record(3, 0.5), record(4, 0.25001)], wanted)
    assert found["equal masks"] == found["masks"] == 2 and 0 < found["IoU"] < 2e-5
    for other in (record(5, 0.25), record(4, 0.251), record(4, 0.25, 2.0)):
        with pytest.raises(ValueError, match=r"differ|are not"):
            automatic_masks.compare([record(3, 0.5), other], wanted)
    with pytest.raises(ValueError, match="1 masks"):
        automatic_masks.compare(wanted[:1], wanted)


def test_other_numbers_end_a_benchmark(quick, tmp_path, monkeypatch):
    class Side:
        def __init__(self, value):
            self.value = value

        def outputs(self):
            return [np.full((1, 2), self.value, np.float32)]

    def side(library, value):
        here = measure.Here(functools.partial(Side, value))
        return forward.Side(library, "float32", "default", here)

    assert forward.check([side("a", 2.0), side("b", 2.0001)], "float32")
    with pytest.raises(ValueError, match=r"5\.0e-02"):
        forward.check([side("a", 2.0), side("b", 2.1)], "float32")
    with pytest.raises(ValueError, match="nan"):
        forward.check([side("a", 2.0), side("b", np.nan)], "float32")


def test_busy_share_counts_overlaps_once():
    assert episodes.covered([(0, 10)]) == 1
    assert episodes.covered([(60, 100), (0, 10), (5, 20), (6, 7), (60, 70)]) == 0.6


@pytest.mark.slow
def test_the_roofline_counts_every_sample():
    few, many = (
        roofline.bounds(Problem(size=32, embedding=2, samples=k, prompts=5), 64, 1000)
        for k in (2, 6)
    )
    for name in ("FLOP", "bytes", "transcendentals"):
        assert 2.9 < many[name] / few[name] < 3.01


def test_table_is_markdown():
    rows = [{"": "a", "s": 1.23456, "n": 7}, {"": "bcd", "s": 0.5, "n": 10}]
    assert measure.table(rows).splitlines() == [
        "|     | s    | n  |",
        "|-----|------|----|",
        "| a   | 1.23 | 7  |",
        "| bcd | 0.5  | 10 |",
    ]


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param(x.name, marks=pytest.mark.slow if x.name in QUICK else pytest.mark.exhaustive)
        for x in gpu.STAGES
    ],
)
def test_every_stage_for_a_gpu_runs_small_on_a_cpu(stage, tmp_path, capsys, monkeypatch):
    arguments = f"gpu --smoke --device cpu --stages {stage} --out {tmp_path}"
    monkeypatch.setattr("sys.argv", arguments.split())
    assert gpu.main() == 0, capsys.readouterr().out
    assert json.loads((tmp_path / f"{stage}.json").read_text())
    assert re.fullmatch(
        rf"\| {stage} +\| done, \d+ s \|", (tmp_path / "summary.md").read_text().splitlines()[2]
    )


def test_a_stage_is_cut_off_and_the_next_begins(tmp_path, monkeypatch, capsys):
    stages = (
        gpu.Stage("long", 1, "benchmarks.gpu.agree", ""),
        gpu.Stage("wrong", 60, "benchmarks.gpu.nothing", ""),
    )
    monkeypatch.setattr(gpu, "STAGES", stages)
    monkeypatch.setattr("sys.argv", ["gpu", "--out", str(tmp_path)])
    assert gpu.main() == 1
    long, wrong = (tmp_path / "summary.md").read_text().splitlines()[2:]
    assert "cut off at 1 s" in long and "failed with 1" in wrong
    assert "No module named benchmarks.gpu.nothing" in capsys.readouterr().out
