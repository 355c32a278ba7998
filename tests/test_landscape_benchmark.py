"""The benchmark of the landscape study: weights into PyTorch, equal losses, its table."""

import json

import numpy as np
import pytest
import torch
from sam_pairs import CFG, pair

from benchmarks import measure, prompt_landscape
from prosam_jax.weights import files


@pytest.mark.slow
def test_weights_come_back_to_pytorch():
    theirs, ours = pair(CFG, 5)
    arrays = {name: np.asarray(x) for name, x in files.leaves(ours).items()}
    found = prompt_landscape.torch_state(theirs.state_dict(), arrays)
    assert found.keys() == theirs.state_dict().keys()
    for name, x in theirs.state_dict().items():
        np.testing.assert_array_equal(found[name], x)


def test_other_losses_end_it():
    wanted = np.asarray([1.0, 0.5])
    assert prompt_landscape.apart(wanted + 1e-5, wanted, "few") == pytest.approx(2e-5)
    # Single descents may drift apart in the end, their mean may not.
    assert prompt_landscape.apart(wanted + np.asarray([0.1, -0.1]), wanted, "all") == pytest.approx(
        0
    )
    for found, when in (
        (wanted + np.asarray([0, 1e-3]), "few"),
        (wanted + 0.1, "all"),
        (wanted * np.nan, "all"),
    ):
        with pytest.raises(ValueError, match="losses after"):
            prompt_landscape.apart(found, wanted, when)


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "Alone", measure.Here)  # starting a process takes seconds
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    out = tmp_path / "out.json"
    words = ["--sets=2", "--steps=6", "--prompts", "3", "--turns=2", "--threads", "1"]
    result = prompt_landscape.main([*words, f"--out={out}"])
    one, batch, ours = result["rows"]
    assert [x["side"] for x in (one, batch, ours)] == [
        "PyTorch, one by one, threads 1",
        "PyTorch, one batch, threads 1",
        "prosam_jax",
    ]
    assert one["mean apart at the end"] == 0 < ours["mean apart at the end"] < 1e-3
    assert ours["compile s"] > 0 and ours["as expected"].endswith("(at most 0.75)")
    assert json.loads(out.read_text())["rows"] == result["rows"]
    assert "| prosam_jax" in capsys.readouterr().out
