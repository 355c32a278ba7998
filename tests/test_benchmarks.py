import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import encoder, episodes, forward, measure
from prosam_jax.config import SAMConfig
from torch_models import sam


class Here:
    """`measure.Alone` without a process of its own, which takes seconds to start."""

    def __init__(self, make, *arguments, environment=None):
        self.held = make(*arguments)

    def __call__(self, method, *arguments):
        return getattr(self.held, method)(*arguments)

    def close(self):
        pass


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measure, "Alone", Here)
    monkeypatch.setattr(forward, "MATMUL", {"cpu": (64, 2)})
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)


@pytest.mark.parametrize(("model", "giga"), [("vit_b", 972), ("vit_l", 2986), ("vit_h", 5961)])
def test_operations_of_published_encoders(model, giga):
    assert round(encoder.flops(SAMConfig.named(model), padded=True) / 1e9) == giga


@pytest.mark.parametrize("window_size", [5, 0])
def test_operations_are_those_that_pytorch_counts(window_size):
    cfg = dataclasses.replace(SAMConfig.tiny(), image_size=(112, 208), window_size=window_size)
    twin = sam.build(cfg, 0).image_encoder
    with FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, 3, *cfg.image_size))
    assert encoder.flops(cfg, padded=True) == counter.get_total_flops()


def test_encoder_benchmark_runs(quick, tmp_path, capsys):
    arguments = "--model tiny --size 96 --batch 2 --turns 3 --out"
    result = encoder.main([*arguments.split(), str(tmp_path / "out.json")])
    sides = result["sides"]
    assert list(sides) == [
        "PyTorch eager, float32, malloc default",
        "prosam_jax, float32, malloc default",
    ]
    theirs, ours = sides.values()
    assert theirs["over PyTorch"]["median"] == 1
    assert 0 < ours["FLOP"] < theirs["FLOP"]
    assert ours["compile seconds"] > 0
    assert max(result["largest difference"].values()) < 1e-5
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["sides"] == sides and written["settings"]["model"] == "tiny"
    assert "| prosam_jax, float32, malloc default" in capsys.readouterr().out


def test_other_numbers_end_a_benchmark(quick, tmp_path, monkeypatch):
    class Side:
        def __init__(self, value):
            self.value = value

        def outputs(self):
            return [np.full((1, 2), self.value, np.float32)]

    def side(library, value):
        return forward.Side(library, "float32", "default", Here(functools.partial(Side, value)))

    assert forward.check([side("a", 2.0), side("b", 2.0001)], "float32")
    with pytest.raises(ValueError, match=r"5\.0e-02"):
        forward.check([side("a", 2.0), side("b", 2.1)], "float32")
    with pytest.raises(ValueError, match="nan"):
        forward.check([side("a", 2.0), side("b", np.nan)], "float32")


def test_busy_share_counts_overlaps_once():
    assert episodes.covered([(0, 10)]) == 1
    assert episodes.covered([(60, 100), (0, 10), (5, 20), (6, 7), (60, 70)]) == 0.6


def test_table_is_markdown():
    rows = [{"": "a", "s": 1.23456, "n": 7}, {"": "bcd", "s": 0.5, "n": 10}]
    assert measure.table(rows).splitlines() == [
        "|     | s    | n  |",
        "|-----|------|----|",
        "| a   | 1.23 | 7  |",
        "| bcd | 0.5  | 10 |",
    ]
