"""The commands as a user calls them, each in a process of its own."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from fake_voc import write_voc
from small import flags, small_config

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}


def _run(script, *arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.data.fld=1"], "unknown setting data.fld; nearest: data.fold"),
        (["--config.dat.fold=1"], "unknown setting dat.fold; nearest: data"),
        (["--config.sam.model=vit_x"], "sam.model='vit_x' is not known; nearest: vit_l"),
        (["--config.data.fold=one"], "flag --config.data.fold=one: invalid literal for int()"),
        (["--config=configs/pasca.py"], "--config=configs/pasca.py: there is no such file; conf"),
        (["--workdr=x"], "Unknown command line flag 'workdr'. Did you mean: workdir"),
        (["--config.data.root=nowhere"], "data.root='nowhere': found nothing of that kind"),
        (["surplus"], "unexpected argument 'surplus'"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_mistakes_get_one_line(tmp_path, arguments, message):
    done = _run("train.py", f"--workdir={tmp_path}", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_missing_weights_get_one_line_and_the_command(tmp_path):
    root = write_voc(tmp_path / "voc")
    done = _run(
        "train.py", f"--workdir={tmp_path / 'run'}", f"--config.data.root={root}",
        "--config.data.fold=1", "--config.sam.weights=none.safetensors",
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: none.safetensors is missing; make it with: prosam weights convert sam "
        "--model vit_h --checkpoint CHECKPOINT --out none.safetensors (`python -m prosam_jax."
    )


@pytest.mark.slow
def test_evaluation_without_a_run_gets_one_line(tmp_path):
    done = _run("evaluate.py", f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert "config.json is missing: --workdir must name the workdir" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint=latest"], "--checkpoint picks from a run, --prompt_encoder is a file"),
        ([], "none.safetensors is missing; make it with: prosam export"),
    ],
    ids=["two", "missing"],
)
def test_mistakes_about_a_file_get_one_line(tmp_path, arguments, message):
    command = [f"--workdir={tmp_path}", "--prompt_encoder=none.safetensors", *arguments]
    done = _run("evaluate.py", *command)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_train_stop_resume_evaluate(tmp_path):
    cfg = small_config(tmp_path / "voc", train={"steps": 20, "eval_every": 20}, data={"workers": 1})
    command = [f"--workdir={tmp_path / 'run'}", *flags(cfg)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "train.py", *command],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )
        deadline = time.monotonic() + 280
        while "step 3/20" not in (tmp_path / "log").read_text():
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    out = (tmp_path / "log").read_text()
    stopped = int(re.search(r"stopped at step (\d+); the same command goes on from there", out)[1])
    resumed = _run("train.py", *command)
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on at step {stopped} in" in resumed.stdout
    assert "step 20/20" in resumed.stdout
    # From another folder, as a user may.
    done = _run("evaluate.py", f"--workdir={tmp_path / 'run'}", "--config.eval.episodes=2",
                cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "mIoU" in done.stdout
    assert "RANDOM weights, as asked for" in done.stdout
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["episodes"] == 2
    assert 0 <= results["miou"] <= 100
    assert (tmp_path / "run" / "examples.png").read_bytes().startswith(b"\x89PNG")
    assert os.listdir(tmp_path / "run" / "checkpoints")


SMALL_DEMO = {
    "sam.weights": "random", "sam.image_size": 64, "backbone.weights": "random",
    "data.image_size": 64, "prompt.num_queries": 3, "distribution.samples": 2,
    "train.steps": 2, "train.batch_size": 2, "train.log_every": 1,
    "eval.episodes": 3, "eval.batch_size": 2, "eval.pictures": 2,
}  # fmt: skip


def _as_flags(settings):
    return [f"--config.{name}={value}" for name, value in settings.items()]


@pytest.mark.slow
def test_a_stopped_demo_saves_what_is_under_way(tmp_path):
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "demo.py", f"--workdir={tmp_path}", "--jobs=2",
             *_as_flags(SMALL_DEMO | {"train.steps": 100000})],
            cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log,
        )  # fmt: skip
        curves = [tmp_path / method / "metrics.jsonl" for method in ("vrp", "student_t")]
        deadline = time.monotonic() + 280
        while not all(x.is_file() and x.stat().st_size for x in curves):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 128 + signal.SIGTERM
    for x in curves:
        last = json.loads(x.read_text().splitlines()[-1])["step"]
        assert (x.parent / "checkpoints" / str(last)).is_dir()


@pytest.mark.slow
def test_the_demo_compares_and_reports_and_does_nothing_twice(tmp_path):
    settings = _as_flags(SMALL_DEMO)
    done = _run("demo.py", f"--workdir={tmp_path / 'demo'}", "--jobs=2", *settings)
    assert done.returncode == 0, done.stderr
    for method in ("vrp", "student_t"):
        assert "step 2/2" in (tmp_path / "demo" / method / "log.txt").read_text()
        assert f"{method}: mIoU" in done.stderr
    table = done.stdout[done.stdout.index("novel classes of fold 0") :]
    for name in ("VRP-SAM", "ProSAM, Student-t", "reference of a wrong class", "empty prompt"):
        assert name in table
    report = tmp_path / "demo" / "report.html"
    assert str(report) in table
    assert report.read_text().count("data:image/png") == 2 * 8
    for method in ("vrp", "student_t"):
        held = json.loads((tmp_path / "demo" / method / "results.json").read_text())
        assert held["step"] == 2
        assert held["controls"]["empty prompt"]["miou"] >= 0
        assert f"{held['miou']:.2f}" in table
    again = _run("demo.py", f"--workdir={tmp_path / 'demo'}", *settings)
    assert again.returncode == 0, again.stderr
    assert "step 2/2" not in again.stdout
    assert (
        table.rpartition("the report")[0].splitlines()[:-1]
        == (again.stdout[again.stdout.index("novel classes of fold 0") :].splitlines()[:-1])
    )
    method = _run("demo.py", *settings, "--config.distribution.name=gaussian")
    assert method.stderr.startswith("error: distribution.name: set by the comparison itself")
    other = _run("demo.py", f"--workdir={tmp_path / 'demo'}", *settings, "--config.seed=5")
    assert other.returncode == 1
    assert "holds a run with other settings (seed: 321 -> 5" in other.stderr


@pytest.mark.exhaustive
def test_a_file_is_scored_as_its_run(tmp_path):
    """`test_prompt_file.py` does the same within one process."""
    cfg = small_config(tmp_path / "voc", train={"steps": 2}, eval={"episodes": 2})
    trained = _run("train.py", f"--workdir={tmp_path / 'run'}", *flags(cfg))
    assert trained.returncode == 0, trained.stderr
    scored = _run("evaluate.py", f"--workdir={tmp_path / 'run'}")
    assert scored.returncode == 0, scored.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    file = tmp_path / "encoder.safetensors"
    exported = subprocess.run(
        [sys.executable, "-m", "prosam_jax.prompt_file", "export",
         f"--workdir={tmp_path / 'run'}", f"--out={file}"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    assert f"mIoU {results['miou']:.2f}, FB-IoU {results['fb_iou']:.2f} on 2 epi" in exported.stdout
    (tmp_path / "voc").rename(tmp_path / "moved")
    done = _run(
        "evaluate.py", f"--prompt_encoder={file}", f"--workdir={tmp_path / 'scored'}",
        f"--config.data.root={tmp_path / 'moved'}", "--config.eval.episodes=2", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"student_t, {file}" in done.stdout
    found = json.loads((tmp_path / "scored" / "results.json").read_text())
    for name in ("miou", "fb_iou", "per_class", "episodes", "episode_list_sha256", "step"):
        assert found[name] == results[name]
