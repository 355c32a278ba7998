"""What every command does alike: help, exit statuses, what goes to stdout and stderr."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from commands import ENVIRONMENT, PROSAM, ROOT, examples, one_line, run, status_of
from fake_voc import write_voc
from PIL import Image
from small import small_config

from prosam_jax import cli, runs, share
from prosam_jax.config import Config, replaced, write_config
from prosam_jax.data import datasets
from prosam_jax.errors import UserError
from prosam_jax.training import loop
from prosam_jax.weights.pretrained import PACKAGED_ENCODERS

CONVERTERS = ("sam", "backbone", "vrp-sam")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_shows_examples_that_are_understood(verb, capsys):
    assert status_of(verb, "--help") == 0
    out, err = capsys.readouterr()
    assert err == ""
    shown = examples(out)
    assert verb in {words[0] for words in shown}
    for words in shown:
        assert callable(cli.parse_args(words).run), words


def test_the_whole_help_names_every_verb(capsys):
    assert status_of("--help") == 0
    out = capsys.readouterr().out
    assert all(f" {verb} " in out for verb in cli.VERBS)
    assert len(examples(out)) > 2
    for words in examples(out):
        assert callable(cli.parse_args(words).run)


@pytest.mark.torch
@pytest.mark.parametrize("kind", CONVERTERS)
def test_converters_show_examples_that_are_understood(kind, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status_of("weights", "convert", kind, "--help") == 0
    shown = examples(capsys.readouterr().out)
    assert shown
    for words in shown:
        assert words[:3] == ["weights", "convert", kind]
        assert status_of(*words) == 1  # the checkpoint is not there
        one_line(capsys.readouterr().err, words[words.index("--checkpoint") + 1])


def test_the_version_is_told(capsys):
    import prosam_jax

    assert status_of("--version") == 0
    assert f"prosam_jax {prosam_jax.__version__}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "prosam VERB --help"),
        (["weights"], "prosam weights list"),
        (["segment", "--colour"], "usage: prosam segment"),
        (["trian"], "trian"),
        (["train"], "--workdir"),
        (["train", "--workdr=x"], "--workdir"),
        (["train", "--workdir=x", "--cofnig=y"], "--cofnig"),
        (["train", "--workdir=x", "surplus"], "surplus"),
        (["weights", "fetsch"], "fetsch"),
        (["cache", "bild"], "bild"),
        (["cache"], "WHAT"),
        (["export", "--workdir=x", "--out=y", "--config.data.fold=1"], "--config.data.fold"),
        (["train", "--workdir="], "--workdir"),
        (["train", "--workdir=x", "--config="], "--config"),
        (["train", "--workdir=x", "--prompt-encoder="], "--prompt-encoder"),
        (["evaluate", "--workdir=x", "--checkpoint="], "--checkpoint"),
        (["segment", "--reference=", "--targets=x", "--out=y"], "--reference"),
        (["weights", "verify", ""], "file"),
    ],
    ids=" ".join,
)
def test_what_is_not_understood_ends_with_2(arguments, named, capsys):
    assert status_of(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err


def test_evaluation_heeds_its_recipe(tmp_path, monkeypatch, capsys):
    trained = small_config(tmp_path / "voc")
    run = tmp_path / "run"
    run.mkdir()
    write_config(trained, run / "config.json")
    scored = []
    monkeypatch.setattr(runs, "score", lambda *given: scored.append(given))
    recipe = tmp_path / "mine.py"
    recipe.write_text("def get_config():\n    return {'eval': {'episodes': 7, 'seed': 2}}\n")
    words = ("evaluate", "--workdir", run, "--config", recipe)
    assert status_of(*words, "--config.eval.seed=5", "--checkpoint=latest") == 0
    wanted = replaced(trained, {"eval.episodes": 7, "eval.seed": 5})
    assert scored == [(wanted, run, "latest")]
    recipe.write_text("def get_config():\n    return {'seed': 7}\n")
    assert status_of(*words) == 1
    one_line(capsys.readouterr().err, "seed", "321", "7")
    assert len(scored) == 1


def test_segmentation_heeds_its_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save("a.png")
    (tmp_path / "mine.py").write_text(
        "def get_config():\n    return {'sam': {'weights': 'elsewhere.safetensors'}}\n"
    )
    words = ["segment", "--reference=a.png", "--box=1,2,30,30", "--targets=a.png", "--out=out"]
    assert status_of(*words, "--config=mine.py") == 1
    one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], "elsewhere.safetensors")
    (tmp_path / "mine.py").write_text("def get_config():\n    return {'train': {'steps': 3}}\n")
    assert status_of(*words, "--config=mine.py") == 1
    one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], "train.steps")


def test_a_prompt_encoder_to_begin_from_is_a_setting(monkeypatch, tmp_path, capsys):
    begun = []
    monkeypatch.setattr(loop, "train", lambda cfg, workdir: begun.append(cfg.prompt.weights))
    words = ["train", "--workdir", tmp_path, "--prompt-encoder=a.safetensors"]
    assert status_of(*words) == 0
    assert begun == ["a.safetensors"]
    assert status_of(*words[:-1], "--prompt-encoder=prosam-shapes") == 0
    assert begun[1:] == [str(PACKAGED_ENCODERS["prosam-shapes"])]
    assert status_of(*words, "--config.prompt.weights=b.safetensors") == 1
    one_line(capsys.readouterr().err, "--prompt-encoder", "prompt.weights")
    run = tmp_path / "run"
    run.mkdir()
    write_config(Config(), run / "config.json")
    assert status_of("train", "--workdir", tmp_path, "--prompt-encoder", run) == 1
    one_line(capsys.readouterr().err, run, "prosam export")
    assert len(begun) == 2


def test_a_run_goes_on_with_its_settings(monkeypatch, tmp_path):
    begun = []
    monkeypatch.setattr(loop, "train", lambda cfg, workdir: begun.append(cfg))
    trained = replaced(Config(), {"data.fold": 2, "train.epochs": 7})
    write_config(trained, tmp_path / "config.json")
    words = ["train", "--workdir", tmp_path]
    assert status_of(*words) == 0
    assert status_of(*words, "--config.train.epochs=8") == 0
    assert status_of(*words, "--config=pascal") == 0
    assert status_of("train", "--workdir", tmp_path / "new") == 0
    assert begun[:2] == [trained, replaced(trained, {"train.epochs": 8})]
    assert [cfg.data.fold for cfg in begun[2:]] == [0, 0]


def test_a_run_and_a_file_are_not_scored_at_once(tmp_path, capsys):
    words = ["evaluate", "--workdir", tmp_path, "--prompt-encoder=none.safetensors"]
    assert status_of(*words, "--checkpoint=latest") == 1
    one_line(capsys.readouterr().err, "--checkpoint", "--prompt-encoder")
    assert status_of(*words) == 1
    one_line(capsys.readouterr().err, "none.safetensors", "prosam export")
    assert status_of("evaluate", "--workdir", tmp_path) == 1
    one_line(capsys.readouterr().err, tmp_path / "config.json", "--workdir")


def test_missing_weights_are_named_with_the_command_that_makes_them(tmp_path, capsys):
    root = write_voc(tmp_path / "voc")
    given = [f"--config.data.root={root}", "--config.data.fold=1"]
    given.append("--config.sam.weights=none.safetensors")
    assert status_of("train", f"--workdir={tmp_path / 'run'}", *given) == 1
    one_line(
        capsys.readouterr().err, "none.safetensors", "prosam weights convert sam --model vit_h"
    )


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (UserError("names what is wrong"), 1),
        (FloatingPointError("loss is nan"), 1),
        (PermissionError(13, "Permission denied", "x"), 1),
    ],
    ids=lambda x: type(x).__name__,
)
def test_exit_statuses(error, status, monkeypatch, tmp_path, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(share, "export", fail)
    assert status_of("export", "--workdir=run", "--out", tmp_path / "x") == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert str(error) in err


def test_a_bug_keeps_its_traceback(monkeypatch, tmp_path):
    def fail(*_):
        raise ValueError("a bug")

    monkeypatch.setattr(share, "export", fail)
    with pytest.raises(ValueError, match="a bug"):
        status_of("export", "--workdir=run", "--out", tmp_path / "x")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "line by line"])
@pytest.mark.parametrize("words", [["weights", "list"], ["weights", "--help"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(words, unbuffered):
    """As in `prosam ... | head`: the pipe is closed before the command writes."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*PROSAM, *words],
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": unbuffered},
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writing)
    assert done.stderr == b""
    assert done.returncode == (0 if unbuffered and "--help" in words else 141)


def test_episodes_are_those_of_the_digest(tmp_path, capsys):
    root = write_voc(tmp_path / "VOC2012")
    given = [f"--config.data.root={root}", "--config.data.fold=1", "--config.seed=5"]
    assert status_of("episodes", "--list", "--split=train", *given) == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, *lines, last = out.splitlines()
    assert "Pascal-5i fold 1 train" in first
    assert last.split()[0] == "5"
    assert last.split()[-1] == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    data = Config.from_dict({"data": {"root": str(root), "fold": 1}}).data
    source = datasets.episodes(data, "train", seed=5)
    assert lines == [str(source.spec(i)) for i in range(5)]
    assert status_of("episodes", "--split=train", *given) == 0
    assert capsys.readouterr().out.splitlines() == [first, last]


@pytest.mark.parametrize(
    ("test", "shown"), [("pascal_disjoint", {2, 6, 13}), ("pascal_standard", {6, 7})]
)
def test_a_run_on_coco_is_tested_on_pascal(tmp_path, test, shown, capsys):
    voc = write_voc(tmp_path, classes=(2, 6, 7, 13))
    given = ["--config=coco", "--config.data.fold=1", f"--config.data.test={test}"]
    given += ["--config.eval.episodes=30", "--list"]
    assert status_of("episodes", *given, f"--config.data.test_root={voc}") == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert "COCO to Pascal" in first and last.split()[0] == "30"
    assert {int(line.split()[1]) for line in lines} == shown
    assert status_of("episodes", *given) == 1
    one_line(capsys.readouterr().err, "data.test_root")


DOORS = {"train.py": "train", "evaluate.py": "evaluate", "segment.py": "segment", "demo.py": "demo"}


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
def test_scripts_are_doors_of_the_command(door, tmp_path, capsys):
    assert status_of(DOORS[door], "--help") == 0
    shown = capsys.readouterr().out
    done = run(sys.executable, ROOT / door, "--help", cwd=tmp_path, PYTHONPATH="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == shown.split()


@pytest.mark.slow
def test_doors_take_what_the_command_takes(tmp_path):
    words = ["--config", "configs/pascal.py", "--config.data.root=nowhere"]
    done = run(sys.executable, "train.py", *words, f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stdout) == (1, "")
    one_line(done.stderr, "data.root", "nowhere")
    done = run(sys.executable, "evaluate.py", f"--workdir={tmp_path}")
    assert done.returncode == 1
    one_line(done.stderr, tmp_path / "config.json")
    words = ["--model=tiny", f"--checkpoint={tmp_path / 'none.pth'}", "--out=x.safetensors"]
    done = run(sys.executable, ROOT / "convert/sam_to_flax.py", *words, cwd=tmp_path)
    assert done.returncode == 1
    one_line(done.stderr, "none.pth")
    assert list(tmp_path.iterdir()) == []
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    words = ["--reference=a.png", "--box=1,2,30,30", "--targets=a.png", "--out=out"]
    done = run(sys.executable, ROOT / "segment.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prosam-shapes" in done.stderr and "out" in done.stdout
    (path,) = (tmp_path / "out").iterdir()
    with Image.open(path) as mask:
        assert mask.size == (40, 40)
    assert run(*PROSAM, "--version", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["weights", "verify", "~/none"],
        ["weights", "show", "~/none.safetensors"],
        ["evaluate", "--workdir=~/none"],
        ["export", "--workdir=~/none", "--out=x"],
        ["segment", "--reference=~/none", "--box=1,2,3,4", "--targets=x", "--out=y"],
        ["prepare", "folder", "--root=~/none", "--check"],
        ["prepare", "tfds", "pascal", "--root=~/none", "--data-dir=~/t"],
        pytest.param(
            ["weights", "convert", "sam", "--model=vit_b", "--checkpoint=~/none", "--out=x"],
            marks=pytest.mark.torch,
        ),
    ],
    ids=" ".join,
)
def test_a_path_may_begin_at_home(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert status_of(*arguments) == 1
    one_line(capsys.readouterr().err, tmp_path / "home" / "none")


def test_an_unknown_home_is_a_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status_of("weights", "verify", "~nobodyatall/x") == 1
    one_line(capsys.readouterr().err, "~nobodyatall/x")
    assert status_of("weights", "show", "~nobodyatall/x.safetensors") == 1
    one_line(capsys.readouterr().err, "~nobodyatall/x.safetensors")


def test_a_closed_stdout_is_no_error():
    shell = ["sh", "-c", '"$@" >&-', "sh", *PROSAM, "weights", "list"]
    done = run(*shell)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_is_no_text_is_printed(tmp_path):
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    words = ["segment", "--reference=a.png", "--box=1,2,30,30", "--targets=a.png"]
    done = run(*PROSAM, *words, os.fsdecode(b"--out=m\xe9"), cwd=tmp_path, LC_ALL="C.UTF-8")
    assert done.returncode == 0, done.stderr
    assert "m\\udce9" in done.stdout
    assert [x.name for x in (tmp_path / os.fsdecode(b"m\xe9")).iterdir()] == ["a.png"]


def test_a_file_in_the_way_is_named(tmp_path, capsys):
    (tmp_path / "run").write_text("")
    words = ["--config=shapes", "--config.train.steps=1", "--config.eval.episodes=1"]
    assert status_of("train", "--workdir", tmp_path / "run", *words) == 1
    one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], tmp_path / "run")
