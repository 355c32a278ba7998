"""Sweeps: which runs there are, and what becomes of them in their processes."""

import json
import multiprocessing
import os
import pathlib
import re
import signal
import threading
import time

import pytest
from finished_runs import BASE, finished

from prosam_jax.comparison import methods, sweep

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_processes_tell_what_came_of_their_runs(tmp_path, capsys):
    done = [finished(tmp_path, method, 40.0) for method in ("vrp", "gaussian", "student_t")]
    sweep.finish(done, jobs=2)
    told = capsys.readouterr().err
    assert len(re.findall(r"mIoU 40\.00 in 0:00:0\d; \d of 3", told)) == 3
    lost = methods.run_of(BASE, tmp_path, "lost", {"sam.weights": "none.safetensors"})
    with pytest.raises(ValueError, match=r"lost: none\.safetensors is missing; make it with"):
        sweep.finish([lost, done[0]], jobs=1)
    assert (tmp_path / "lost" / "log.txt").is_file()
    assert "mIoU 40.00" in capsys.readouterr().err  # one bad run does not stop the others


def _long(folder, name):
    return methods.run_of(BASE, folder, name, {"train.steps": 100000, "train.log_every": 1})


def _once_under_way(runs, action):
    """Does something when all of the runs have taken a step."""

    def wait():
        curves = [run.workdir / "metrics.jsonl" for run in runs]
        deadline = time.monotonic() + 200
        while not all(x.is_file() and x.stat().st_size for x in curves):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        action()

    threading.Thread(target=wait, daemon=True).start()


def _saved(run):
    """Whether the last step that a run has told of can be gone on from."""
    last = json.loads((run.workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    return (run.workdir / "checkpoints" / str(last)).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "raised"),
    [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_stops_all_processes_once_they_have_saved(tmp_path, capsys, number, raised):
    """One of them has nothing to do by then."""
    done, long = finished(tmp_path, "vrp", 40.0), _long(tmp_path, "long")
    told = []

    def stop():
        told.append(time.monotonic())
        os.kill(os.getpid(), number)

    _once_under_way([long], stop)
    with pytest.raises(raised):
        sweep.finish([done, long], jobs=2)
    assert time.monotonic() - told[0] < sweep.PATIENCE / 2
    assert _saved(long)
    assert not multiprocessing.active_children()
    assert "vrp: mIoU 40.00" in capsys.readouterr().err
    assert "step 1/100000" in (long.workdir / "log.txt").read_text()


@pytest.mark.slow
def test_a_killed_process_is_told_and_the_others_save(tmp_path, capsys):
    done, *under_way = finished(tmp_path, "vrp", 40.0), *(_long(tmp_path, x) for x in "ab")
    _once_under_way(under_way, lambda: multiprocessing.active_children()[0].kill())
    with pytest.raises(ValueError, match=r"2 of 3 runs .* run the same command again"):
        sweep.finish([done, *under_way], jobs=2)
    assert any(_saved(run) for run in under_way)
    assert not multiprocessing.active_children()
    assert "vrp: mIoU 40.00" in capsys.readouterr().err


@pytest.mark.slow
def test_a_process_that_is_told_to_stop_saves_and_the_sweep_ends(tmp_path):
    runs = [_long(tmp_path, x) for x in "ab"]
    _once_under_way(runs, lambda: multiprocessing.active_children()[0].terminate())
    with pytest.raises(ValueError, match=r"2 of 2 runs .* run the same command again"):
        sweep.finish(runs, jobs=2)
    assert all(_saved(run) for run in runs)
