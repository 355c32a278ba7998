"""Whole commands from end to end, each in a process of its own."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from commands import ENVIRONMENT, PROSAM, ROOT, one_line, run
from small import flags, small_config

from prosam_jax import runs

pytestmark = pytest.mark.slow


def _started(log, *command):
    """A process whose stdout and stderr go to a file."""
    with log.open("w") as file:
        return subprocess.Popen(
            [str(x) for x in command], cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=file
        )


def _wait(process, log, reached):
    deadline = time.monotonic() + 280
    while not reached():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda x: x.name)
def test_train_stop_resume_evaluate(tmp_path, signum):
    cfg = small_config(tmp_path / "voc", train={"steps": 20, "eval_every": 20}, data={"workers": 1})
    workdir, log = tmp_path / "run", tmp_path / "log"
    command = [f"--workdir={workdir}", *flags(cfg)]
    process = _started(log, sys.executable, "train.py", *command)
    _wait(process, log, lambda: "step 3/20" in log.read_text())
    process.send_signal(signum)
    assert process.wait(120) == 128 + signum
    stopped = int(re.search(r"stopped at step (\d+)", log.read_text())[1])
    assert os.listdir(workdir / "checkpoints") == [str(stopped)]
    if signum == signal.SIGINT:  # what follows is the same
        return
    resumed = run(*PROSAM, "train", *command)
    assert resumed.returncode == 0, resumed.stderr
    assert str(workdir) in resumed.stdout and "step 20" in resumed.stdout
    assert f"at step {stopped} in" in resumed.stderr
    assert "step 20/20" in resumed.stderr
    # From another folder, as a user may, with a recipe that is a file of one's own.
    (tmp_path / "two.py").write_text("def get_config():\n    return {'eval': {'episodes': 2}}\n")
    words = [f"--workdir={workdir}", "--config=two.py"]
    done = run(sys.executable, ROOT / "evaluate.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((workdir / "results.json").read_text())
    assert results["episodes"] == 2
    assert 0 <= results["miou"] <= 100
    assert re.search(rf"mIoU.*{results['miou']:.2f}", done.stdout)
    assert "RANDOM" in done.stderr and "RANDOM" not in done.stdout
    assert (workdir / "examples.png").read_bytes().startswith(b"\x89PNG")


SMALL_DEMO = {
    "sam.weights": "random", "sam.image_size": 64, "backbone.weights": "random",
    "data.image_size": 64, "prompt.num_queries": 3, "distribution.samples": 2,
    "train.steps": 2, "train.batch_size": 2, "train.log_every": 1,
    "eval.episodes": 3, "eval.batch_size": 2, "eval.pictures": 2,
}  # fmt: skip


def _as_flags(settings):
    return [f"--config.{name}={value}" for name, value in settings.items()]


def test_a_stopped_demo_saves_what_is_under_way(tmp_path):
    settings = _as_flags(SMALL_DEMO | {"train.steps": 100000})
    log = tmp_path / "log"
    process = _started(
        log, sys.executable, "demo.py", f"--workdir={tmp_path}", "--jobs=2", *settings
    )
    curves = [tmp_path / method / "metrics.jsonl" for method in ("vrp", "student_t")]
    _wait(process, log, lambda: all(x.is_file() and x.stat().st_size for x in curves))
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    for x in curves:
        last = json.loads(x.read_text().splitlines()[-1])["step"]
        assert (x.parent / "checkpoints" / str(last)).is_dir()


def test_the_demo_compares_and_reports_and_does_nothing_twice(tmp_path):
    settings = _as_flags(SMALL_DEMO)
    demo = [*PROSAM, "demo", f"--workdir={tmp_path / 'demo'}"]
    done = run(*demo, "--jobs=2", *settings)
    assert done.returncode == 0, done.stderr
    for method in ("vrp", "student_t"):
        assert "step 2/2" in (tmp_path / "demo" / method / "log.txt").read_text()
        assert f"{method}: mIoU" in done.stderr
    for name in ("VRP-SAM", "ProSAM, Student-t", "reference of a wrong class", "empty prompt"):
        assert name in done.stdout
    report = tmp_path / "demo" / "report.html"
    assert str(report) in done.stdout
    assert report.read_text().count("data:image/png") == 2 * 9
    for method in ("vrp", "student_t"):
        held = json.loads((tmp_path / "demo" / method / "results.json").read_text())
        assert held["step"] == 2
        assert held["controls"]["empty prompt"]["miou"] >= 0
        assert f"{held['miou']:.2f}" in done.stdout
    again = run(*demo, *settings)
    assert again.returncode == 0, again.stderr
    assert "step 2/2" not in again.stdout + again.stderr
    # The last line tells the time that it took.
    assert again.stdout.splitlines()[:-1] == done.stdout.splitlines()[:-1]
    method = run(*demo, *settings, "--config.distribution.name=gaussian")
    assert method.returncode == 1
    one_line(method.stderr, "distribution.name", "prosam train")
    other = run(*demo, *settings, "--config.seed=5")
    assert other.returncode == 1
    assert "seed: 321 -> 5" in other.stderr


@pytest.mark.exhaustive
def test_a_file_is_scored_as_its_run(tmp_path):
    """`test_prompt_encoder_file.py` does the same within one process."""
    cfg = small_config(tmp_path / "voc", train={"steps": 2}, eval={"episodes": 2})
    trained = run(*PROSAM, "train", f"--workdir={tmp_path / 'run'}", *flags(cfg))
    assert trained.returncode == 0, trained.stderr
    scored = run(*PROSAM, "evaluate", f"--workdir={tmp_path / 'run'}")
    assert scored.returncode == 0, scored.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    file = tmp_path / "encoder.safetensors"
    exported = run(*PROSAM, "export", f"--workdir={tmp_path / 'run'}", f"--out={file}")
    assert exported.returncode == 0, exported.stderr
    assert f"mIoU {results['miou']:.2f}, FB-IoU {results['fb_iou']:.2f}" in exported.stdout
    (tmp_path / "voc").rename(tmp_path / "moved")
    done = run(
        sys.executable, ROOT / "evaluate.py", f"--prompt-encoder={file}",
        f"--workdir={tmp_path / 'scored'}", f"--config.data.root={tmp_path / 'moved'}",
        "--config.eval.episodes=2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(file) in done.stderr
    found = json.loads((tmp_path / "scored" / "results.json").read_text())
    for name in ("miou", "fb_iou", "per_class", "episodes", "episode_list_sha256", "step"):
        assert found[name] == results[name]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_evaluations_beside_a_training_are_whole(tmp_path):
    """It saves every few steps, so that a checkpoint goes while it is read."""
    cfg = small_config(
        tmp_path / "voc", train={"steps": 100000, "checkpoint_every": 10, "eval_every": -1}
    )
    workdir, log = tmp_path / "run", tmp_path / "log"
    process = _started(log, *PROSAM, "train", f"--workdir={workdir}", *flags(cfg))
    saved = workdir / "saved.json"
    _wait(process, log, saved.is_file)
    scored = []
    deadline = time.monotonic() + 280
    while len(scored) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        (workdir / "results.json").unlink(missing_ok=True)
        result = runs.score(cfg, workdir, "latest")
        held = json.loads((workdir / "results.json").read_text())
        assert held["miou"] == pytest.approx(100 * result.scores.miou)
        assert held["episodes"] == 3
        scored.append(held["step"])
    assert scored == sorted(set(scored)) and not any(step % 10 for step in scored)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM
    assert not [x for x in os.listdir(workdir / "checkpoints") if "damaged" in x]
    gc.collect()  # what Orbax left of the checkpoints that went is told here, not in another test
