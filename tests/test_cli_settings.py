"""Settings on a command line: recipes by name and by file, and `--config.GROUP.NAME=VALUE`."""

import ast
import pathlib
import re

import pytest
from commands import ROOT, examples, one_line, status_of

from prosam_jax import cli
from prosam_jax.cli import settings
from prosam_jax.comparison import paper
from prosam_jax.config import Config, read_config, replaced, write_config
from prosam_jax.evaluation.prediction import RESULT
from prosam_jax.training import loop


def settings_of(*arguments):
    """The settings that `prosam train` would take."""
    return settings.config(cli.parse_args(["train", "--workdir", "run", *arguments]))


@pytest.mark.parametrize("name", settings.recipes())
def test_recipes_say_how_they_are_used(name):
    text = ast.get_docstring(ast.parse(settings.recipes()[name].read_text()), clean=False)
    shown = [words[1:] for words in examples(text) if words[0] == "train"]
    assert shown
    for words in shown:
        given = settings_of(*words)
        assert given.data.name == settings.recipe(name)["data.name"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.data.fld=1"], ["data.fld", "data.fold"]),
        (["--config.dat.fold=1"], ["dat.fold"]),
        (["--config.data=1"], ["setting data"]),
        (["--config.sam.model=vit_x"], ["sam.model", "vit_x", "vit_h"]),
        (["--config.data.fold=one"], ["data.fold", "'one'", "a whole number"]),
        (["--config.eval.controls=maybe"], ["eval.controls", "'maybe'", "true or false"]),
        (["--config.train.learning_rate=nan"], ["train.learning_rate", "nan"]),
        (["--config.data.fold"], ["--config.data.fold", "="]),
        (["--config.data.root", "--config.data.fold=1"], ["--config.data.root", "="]),
        (["--config.data.root", "--prompt-encoder=x"], ["--config.data.root", "="]),
        (["--config.data=1"], ["data.name", "data.fold"]),
        (["--config.data.root=~/none"], ["data.root", f"{pathlib.Path.home()}/none"]),
        (["--config.data.root=~nobodyatall/x"], ["data.root", "~nobodyatall/x"]),
        (["--noconfig.data.fold"], ["--noconfig.data.fold"]),
        (["--config.data.novel=fox"], ["data.novel", "data.name"]),
        (["--config=pascl"], ["--config=pascl", "pascal"]),
        (["--config=configs/pasca.py"], ["configs/pasca.py"]),
        (["--config.data.root=nowhere"], ["data.root", "nowhere"]),
    ],
    ids=lambda x: x[0],
)
def test_mistakes_in_settings_get_one_line(arguments, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status_of("train", "--workdir=run", *arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    one_line(err, *named)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (["--config.data.fold=2"], {"data.fold": 2}),
        (["--config.data.fold", "2"], {"data.fold": 2}),
        (["-config.data.fold=2"], {"data.fold": 2}),
        (["--config.train.eval_every", "-1"], {"train.eval_every": -1}),
        (["--config.train.learning_rate=1e-3"], {"train.learning_rate": 1e-3}),
        (["--config.data.root=a=b c"], {"data.root": "a=b c"}),
        (["--config.eval.controls"], {"eval.controls": True}),
        (["--config.eval.controls=true"], {"eval.controls": True}),
        (["--config.eval.controls", "--noconfig.eval.controls"], {}),
        (["--config.eval.controls=False"], {}),
        (["--config.seed=3", "--config.seed=4"], {"seed": 4}),
        (["--config", "shapes", "--config.prompt.dim=96"], None),
    ],
    ids=str,
)
def test_settings_are_taken_in_every_form(arguments, changes):
    wanted = settings.recipe("shapes") if changes is None else changes
    assert settings_of(*arguments) == replaced(Config(), wanted)


def test_a_bare_boolean_takes_no_value_of_the_next_argument():
    words = ["evaluate", "--config.eval.controls", "--workdir", "x"]
    args = cli.parse_args(words)
    assert (args.workdir, args.overrides) == (pathlib.Path("x"), {"eval.controls": True})


RECIPE = "def get_config():\n    return {'seed': 4, 'distribution': {'samples': 3}}\n"


def test_recipes_are_found_by_name_and_by_file_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(RECIPE)
    mine = replaced(Config(), {"seed": 4, "distribution.samples": 3})
    for name in ("mine.py", "./mine.py", str(tmp_path / "mine.py")):
        assert settings_of("--config", name) == settings_of(f"--config={name}") == mine
    by_name, by_file = (settings_of("--config", x) for x in ("coco", f"{ROOT}/configs/coco.py"))
    assert by_name == by_file == replaced(Config(), settings.recipe("coco"))
    given = settings_of("--config=mine.py", "--config.seed=5", "--config.distribution.name=vrp")
    assert given == replaced(Config(), {"seed": 5, "distribution.name": "vrp"})


def write(folder, **texts):
    """Recipes "NAME.py" in the folder; each text is a base and its groups of settings."""
    for name, (base, groups) in texts.items():
        text = f"BASE = {base!r}\ndef get_config():\n    return {groups!r}\n"
        (folder / f"{name}.py").write_text(text)


def test_a_recipe_has_the_settings_of_its_base_below_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    middle = {"train": {"steps": 7, "batch_size": 3}, "seed": 4}
    write(tmp_path, top=("middle.py", {"train": {"steps": 9}}), middle=("coco", middle))
    below = {"data.name": "coco", "train.batch_size": 3, "seed": 4}
    assert settings.recipe("middle.py") == below | {"train.steps": 7}
    assert settings.recipe("top.py") == below | {"train.steps": 9}
    assert settings_of("--config=top.py", "--config.seed=5").seed == 5


@pytest.mark.parametrize(
    ("bases", "named"),
    [
        (["pasca"], ["a.py -> pasca", "no such recipe", "pascal"]),
        (["a.py"], ["a.py -> a.py", "its own BASE"]),
        (["b.py", "a.py"], ["a.py -> b.py -> a.py", "its own BASE"]),
        (["b.py", "none.py"], ["a.py -> b.py -> none.py", "no such recipe"]),
        ([3], ["a.py", "BASE = 3", "name of another recipe"]),
    ],
    ids=str,
)
def test_a_base_that_is_none_gets_one_line(bases, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, **{name: (base, {}) for name, base in zip("ab", bases, strict=False)})
    assert status_of("train", "--workdir=run", "--config=a.py") == 1
    one_line(capsys.readouterr().err, *named)
    assert not (tmp_path / "run").exists()


def of_the_paper(name):
    """Rows of the paper that a recipe trains for, with masks, and only by its own settings."""
    values = settings.recipe(name)
    cfg = replaced(Config(), values)
    if (benchmark := cfg.data.name) not in paper.BENCHMARKS or cfg.sam.model != "vit_h":
        return []
    made = (benchmark, cfg.distribution.name, cfg.backbone.name)
    rows = [(table.name, row) for table in paper.TABLES.values() for row in table.rows]
    return [
        (number, row)
        for number, row in rows
        if (row.benchmark, row.method, row.backbone or "resnet50") == made
        and (row.annotation, row.scored, row.share) == ("mask", RESULT, None)
        and dict(row.scoring.changes).get("data.test", "own") == cfg.data.test
        and None not in row.values.values()
    ]


def test_every_method_of_the_tables_has_a_recipe():
    trained = {
        (row.benchmark, row.method) for x in settings.recipes() for _, row in of_the_paper(x)
    }
    assert trained == {(r.benchmark, r.method) for t in paper.TABLES.values() for r in t.rows}


@pytest.mark.parametrize("name", settings.recipes())
def test_the_papers_values_in_a_recipe_are_the_papers(name):
    text = " ".join(ast.get_docstring(ast.parse(settings.recipes()[name].read_text())).split())
    rows = of_the_paper(name)
    claim = re.search(
        r"The paper reports mIoU (.*?) for folds 0-3 \(Table (\d)\S*( masks\))?", text
    )
    assert bool(claim) == bool(rows)
    if not claim:
        return
    (row,) = [row for number, row in rows if number == claim[2]]
    given = [float(x) for x in re.findall(r"\d+\.\d+", claim[1])]
    assert given == list(row.values.values())
    mean = re.search(r"mean (\d+\.\d+)", text)
    assert (mean and float(mean[1])) == row.mean
    claimed = re.findall(r"\d+\.\d\d", text.partition("One H200")[0])
    assert len(claimed) <= len(given) + 1  # and no others


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("def get_config(:\n", ["line 1", "SyntaxError"]),
        ("\nimport nothing_of_that_name\n", ["line 2", "nothing_of_that_name"]),
        ("def get_config():\n    return 1 / 0\n", ["line 2", "ZeroDivisionError"]),
        ("def get_config(x):\n    return {}\n", ["get_config()", "'x'"]),
        (
            '{"data": {"fold": 1}, "eval": {"controls": false}}',
            ["line 1", "'false'", "Python file"],
        ),
        ("\0", ["SyntaxError"]),
        ("def get_config():\n    return {1: 2}\n", ["setting 1"]),
        ("def get_config():\n    return {'data': {None: 2}}\n", ["setting data.None"]),
        ("def get_config():\n    return {'data': 3}\n", ["setting data", "data.fold"]),
        (
            "def get_config():\n    return {'data': {'fold': '1'}}\n",
            ["data.fold", "'1'", "a whole number"],
        ),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told_with_its_line(text, named, tmp_path, capsys):
    file = tmp_path / "mine ü.py"
    file.write_text(text)
    assert status_of("train", "--workdir", tmp_path / "run", "--config", file) == 1
    one_line(capsys.readouterr().err, *named)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x = 1\n", "get_config"),
        ("def get_config():\n    return 3\n", "int"),
        ("def get_config():\n    return {'sam': {'modle': 'tiny'}}\n", "sam.modle"),
        ("def get_config():\n    return {'train': {'epochs': 'many'}}\n", "train.epochs"),
    ],
)
def test_recipes_that_are_none_get_one_line(text, named, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(text)
    assert status_of("train", f"--workdir={tmp_path / 'x'}", f"--config={tmp_path}/mine.py") == 1
    one_line(capsys.readouterr().err, named)


def test_a_command_that_trains_writes_its_settings(tmp_path, monkeypatch):
    """The recipe and the command line reach the run's folder as they were given."""
    kept = tmp_path / "config.json"
    monkeypatch.setattr(loop, "train", lambda cfg, workdir: write_config(cfg, kept))
    assert status_of("train", "--config=coco", "--config.data.fold=3", "--workdir", tmp_path) == 0
    assert read_config(kept) == replaced(Config(), settings.recipe("coco") | {"data.fold": 3})
