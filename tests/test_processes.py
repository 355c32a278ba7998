"""Processes that are killed, stopped, interrupted or hang, and losses that are not finite."""

import contextlib
import importlib
import multiprocessing
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
from commands import ENVIRONMENT, PROSAM, ROOT
from conftest import told
from fake_voc import write_voc
from messages import check_line
from small import flags, small_config

from prosam_jax.config import DataConfig, replaced
from prosam_jax.data.datasets.pascal import pascal_episodes
from prosam_jax.data.episodes import EpisodeSource
from prosam_jax.data.loader import make_loader
from prosam_jax.errors import UserError
from prosam_jax.training import loop, not_finite, signals
from prosam_jax.weights.checkpoint import Checkpoints


@pytest.fixture
def source(tmp_path):
    """A hundred training episodes, 32 pixels wide and high."""
    root = write_voc(tmp_path, classes=(6, 7, 11), lists=("train_aug",))
    return pascal_episodes(DataConfig(root=str(root), image_size=32), "train", seed=9, length=100)


def _within(seconds, reached):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_reading_that_hangs_is_noticed_and_signals_are_heard(source, monkeypatch):
    answers, looks = threading.Event(), []
    read = EpisodeSource.__getitem__

    def read_or_hang(self, index):
        if index == 3:
            answers.wait()  # as a disk that does not answer
        return read(self, index)

    def interrupt():
        looks.append(1)
        if len(looks) > 8:
            raise signals.Interrupted

    monkeypatch.setattr(EpisodeSource, "__getitem__", read_or_hang)
    with contextlib.closing(make_loader(source, batch_size=1, patience=1)) as loader:
        assert [int(next(loader).index[0]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(UserError) as error:
            next(loader)
        told(error, "the loader hangs", "1 s", "step 4", "data.root", "data.patience")
        answers.set()
    answers.clear()
    loader = make_loader(source, batch_size=1, start=3, patience=60, on_wait=interrupt)
    with contextlib.closing(loader):
        with pytest.raises(signals.Interrupted):
            next(loader)
        answers.set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, ("was killed by SIGKILL", "memory", "data.workers")),
        (signal.SIGSTOP, ("is stopped", "2 s", "data.patience")),
    ],
    ids=("killed", "stopped"),
)
def test_a_lost_worker_is_named_and_none_is_left(source, number, words):
    loader = make_loader(source, batch_size=1, workers=2, patience=2)
    with contextlib.closing(loader):
        _ = next(loader), next(loader)
        pids = [x.pid for x in multiprocessing.active_children()]
        assert len(pids) == 2
        os.kill(pids[1], number)
        began = time.monotonic()
        with pytest.raises(UserError) as error:
            for _ in range(90):  # it may have read several batches already
                next(loader)
        assert time.monotonic() - began < 30
    told(error, "loader worker", f"of 2 (process {pids[1]})", *words)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_second_ctrl_c_is_not_heard_at_once_but_later(monkeypatch, capfd):
    with signals.Signals() as heard:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)
        assert heard.received == signal.SIGINT
        with pytest.raises(signals.Interrupted):
            heard.check()
        monkeypatch.setattr(signals, "GRACE", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err.count("Ctrl-C once more") == 1


@pytest.fixture
def terminal(monkeypatch):
    """A closed terminal is heard, even where the tests run under `nohup`."""
    old = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda x: x.name)
def test_a_signal_ends_a_command_with_its_status(monkeypatch, terminal, number):
    with signals.heard():
        try:
            os.kill(os.getpid(), number)
        except signals.Terminated as ended:
            assert ended.code == 128 + number
            os.kill(os.getpid(), number)  # while it tidies up
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(3 * signals._AGAIN)
            monkeypatch.setattr(signals, "GRACE", 0.0)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) == signal.SIG_DFL


def test_under_nohup_a_closed_terminal_ends_nothing(terminal):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.heard(), signals.Signals() as recorded:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.01)
        assert not recorded.received


def _swallowed(number):
    """A signal whose exception arrives nowhere."""
    try:
        os.kill(os.getpid(), number)
        time.sleep(1)
    except BaseException:
        return
    pytest.fail("it was not raised")


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_a_signal_that_arrived_nowhere_is_heard_after_it(twice):
    with signals.heard(), pytest.raises(KeyboardInterrupt):
        _swallowed(signal.SIGINT)
        if twice:
            _swallowed(signal.SIGINT)
        time.sleep(5)


@pytest.mark.parametrize("number", signals.ENDING, ids=lambda x: x.name)
def test_a_signal_that_arrived_nowhere_stops_a_training_that_begins(terminal, number, capfd):
    with signals.heard():
        _swallowed(number)
        with signals.Signals() as recorded:
            _within(5, lambda: recorded.received)
            assert recorded.received == number


def test_a_signal_that_a_destructor_swallows_is_heard_after_it():
    class Collected:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    with signals.heard(), pytest.raises(signals.Terminated):
        Collected()
        time.sleep(5)


def test_a_signal_while_a_module_is_imported_is_heard_after_it(tmp_path, monkeypatch):
    """Otherwise JAX's extension aborts the process."""
    (tmp_path / "slowly_imported.py").write_text(
        "import os, signal, time\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(0.2)\n"
        "done = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with signals.heard(), pytest.raises(KeyboardInterrupt):
        assert importlib.import_module("slowly_imported").done
        time.sleep(5)
    assert sys.modules.pop("slowly_imported").done


@pytest.mark.slow
def test_progress_outlives_impatience(tmp_path):
    endless = {"steps": 100000, "log_every": 1, "checkpoint_every": 100000, "eval_every": -1}
    cfg = small_config(tmp_path / "voc", train=endless, data={"workers": 1})
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [*PROSAM, "train", f"--workdir={workdir}", *flags(cfg)],
        cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "step 3/" not in (line := process.stderr.readline()):
        assert line
    process.stderr.close()  # as of a `tee` that the same Ctrl-C has ended
    children = psutil.Process(process.pid).children()
    (worker,) = [x for x in children if "spawn_main" in "".join(x.cmdline())]
    worker.suspend()
    time.sleep(1)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.wait(60) == 130
    (stopped,) = os.listdir(workdir / "checkpoints")
    assert int(stopped) >= 3
    _within(10, lambda: not any(x.is_running() for x in children))


# Takes stdin as the terminal of its session, and becomes the command that follows.
_IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
def test_a_training_is_saved_when_its_terminal_is_closed(tmp_path, terminal):
    endless = {"steps": 100000, "log_every": 1, "checkpoint_every": 100000, "eval_every": -1}
    cfg = small_config(tmp_path / "voc", train=endless, data={"workers": 1})
    workdir = tmp_path / "run"
    screen, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_TERMINAL, *PROSAM, "train", f"--workdir={workdir}", *flags(cfg)],
        cwd=ROOT, env=ENVIRONMENT, stdin=end, stdout=end, stderr=end, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    shown = b""
    while b"episodes/s" not in shown:  # a step is done
        shown += os.read(screen, 4096)
    os.close(screen)
    assert process.wait(60) == 128 + signal.SIGHUP
    (stopped,) = os.listdir(workdir / "checkpoints")
    assert int(stopped) >= 1


_READER = """
from prosam_jax.config import DataConfig
from prosam_jax.data.datasets.pascal import pascal_episodes
from prosam_jax.data.loader import make_loader

if __name__ == "__main__":
    source = pascal_episodes(DataConfig(root={!r}, image_size=32), "train", seed=9, length=100)
    loader = make_loader(source, batch_size=1, workers=2)
    print([next(loader).index for _ in range(2)], flush=True)
    input()
"""


@pytest.mark.slow
def test_workers_end_when_their_parent_is_killed(source, tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(_READER.format(str(tmp_path)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, script], env=ENVIRONMENT, **pipes)
    assert process.stdout.readline()
    children = psutil.Process(process.pid).children()
    assert len(children) >= 2
    process.kill()
    process.communicate()
    _within(10, lambda: not any(x.is_running() for x in children))


_POOL = """
import concurrent.futures, multiprocessing, os, time
from prosam_jax.data.processes import begin_worker, starting_workers

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(2, context, begin_worker)
    with starting_workers():
        done, parent = pool.submit(time.sleep, 60), pool.submit(os.getppid)
    try:
        print(parent.result(), flush=True)
        done.result()
    except KeyboardInterrupt:
        print("heard", flush=True)
        os._exit(0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_of_a_pool_end_with_their_parent_alone(tmp_path, number):
    """Ctrl-C reaches all of them, and only the parent hears it."""
    script = tmp_path / "pool.py"
    script.write_text(_POOL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [sys.executable, script], env=ENVIRONMENT, start_new_session=True, text=True, **pipes
    )
    assert process.stdout.readline() == f"{process.pid}\n"
    children = psutil.Process(process.pid).children()
    assert len(children) >= 2
    if number == signal.SIGKILL:
        process.kill()
    else:
        os.killpg(process.pid, number)
    out, error = process.communicate(timeout=20)
    assert out == ("" if number == signal.SIGKILL else "heard\n")
    assert "Traceback" not in error
    _within(10, lambda: not any(x.is_running() for x in children))


@pytest.mark.slow
def test_a_lost_worker_ends_a_training_that_is_saved(tmp_path, monkeypatch):
    cfg = small_config(tmp_path / "voc", train={"eval_every": -1}, data={"workers": 1})
    add = loop.Window.add

    def add_and_kill(self, logs, class_id):
        add(self, logs, class_id)
        if self.start + len(self.logs) == 2:
            for x in multiprocessing.active_children():
                x.kill()

    monkeypatch.setattr(loop.Window, "add", add_and_kill)
    with pytest.raises(UserError) as error:
        loop.train(cfg, tmp_path / "run")
    at = int(re.search(r"step (\d+) is saved", str(error.value))[1])
    check_line(error, "loader worker 1 of 1", "SIGKILL")
    assert 2 <= at < 6
    assert Checkpoints(tmp_path / "run").steps == [at]


@pytest.mark.slow
def test_after_a_nan_the_batch_is_kept_and_another_learning_rate_goes_on(tmp_path, monkeypatch):
    train = {"eval_every": -1, "checkpoint_every": 3, "batch_size": 2}
    cfg = small_config(tmp_path / "voc", train=train)
    workdir = tmp_path / "run"
    add = loop.Window.add

    def add_nan(self, logs, class_id):
        at_five = self.start + len(self.logs) == 4
        add(self, logs | {"loss": np.float32("nan")} if at_five else logs, class_id)

    monkeypatch.setattr(loop.Window, "add", add_nan)
    with pytest.raises(FloatingPointError) as error:
        loop.train(cfg, workdir)
    kept = workdir / "not_finite_5.npz"
    check_line(error, "loss is nan at step 5", kept, "train.learning_rate below 0.001", "step 3")
    monkeypatch.undo()
    source = loop.Trainer(cfg).source
    with contextlib.closing(make_loader(source, batch_size=2, start=4, stop=5)) as loader:
        batch = next(loader)
    with np.load(kept) as held:
        assert held["index"].tolist() == [8, 9]
        assert set(held) == {*batch._fields, "after", "learning_rate"}
        assert (held["after"], held["learning_rate"]) == (3, 1e-3)
        for name in batch._fields:
            np.testing.assert_array_equal(held[name], getattr(batch, name))
    state = {"after": 3, "learning_rate": 1e-3}
    assert not_finite.ended(workdir, **state)
    slower = replaced(cfg, {"train.learning_rate": 5e-4})
    whole = kept.read_bytes()
    for other in (whole[:500], whole[500:], b"", None):  # damaged, and of another state
        kept.write_bytes(other) if other is not None else np.savez(kept, **state | {"after": 2})
        with pytest.raises(UserError) as refused:
            loop.train(slower, workdir)
        check_line(refused, "train.learning_rate: 0.001 -> 0.0005", workdir)
    kept.write_bytes(whole)
    loop.train(slower, workdir)
    rates = {
        int(x): y
        for x, y in re.findall(
            r'"step": (\d+).*"train/learning_rate": ([\d.e-]+)',
            (workdir / "metrics.jsonl").read_text(),
        )
    }
    assert sorted(rates) == [1, 2, 3, 4, 5, 6]
    assert float(rates[4]) == pytest.approx(float(rates[3]) / 2, rel=0.2)
    with pytest.raises(UserError) as refused:  # it has gone beyond
        loop.train(cfg, workdir)
    check_line(refused, "train.learning_rate", workdir)


@pytest.mark.slow
def test_a_state_that_gives_no_finite_loss_is_not_saved(tmp_path):
    """A learning rate far too large leaves parameters that are finite."""
    train = {"learning_rate": 1e38, "checkpoint_every": 1, "eval_every": -1, "steps": 2}
    cfg = small_config(tmp_path / "voc", train=train)
    workdir = tmp_path / "run"
    with pytest.raises(FloatingPointError) as error:
        loop.train(cfg, workdir)
    check_line(error, "after step 1", workdir / "not_finite_1.npz", "begins again at step 0")
    loop.train(replaced(cfg, {"train.learning_rate": 1e-4}), workdir)
    assert Checkpoints(workdir).latest == 2
