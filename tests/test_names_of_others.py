"""Class names and metadata of strangers are text everywhere that they are shown."""

import dataclasses
import io
import json
import sys

import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest
import rich.table
from conftest import told
from finished_runs import BASE, example

from prosam_jax import cli, console, runs, share
from prosam_jax.config import Config, replaced
from prosam_jax.errors import UserError
from prosam_jax.evaluation import prediction, results
from prosam_jax.report import pictures, scores
from prosam_jax.weights import files, prompt_encoder
from prosam_jax.weights.prompt_encoder import Trained

NAMES = ["[/b]", "[red]", ":cat:", "$x^{2$", "a\x1b[2Jb\nc", "\u202egnp", "\u732b"]
SHOWN = ["[/b]", "[red]", ":cat:", "$x^{2$", r"a\x1b[2Jb\nc", r"\u202egnp", "\u732b"]

RESULT = results.Result(
    lists=[
        results.Counted(
            seed=321,
            digest="d" * 64,
            classes=dict(enumerate(NAMES, 1)),
            class_id=np.arange(1, 8),
            target=list("abcdefg"),
            counts={prediction.RESULT: np.array([[c, 10 - c, 0, 5] for c in range(1, 8)])},
        )
    ],
    absent=False,
    seconds=1.0,
    examples=[],
    references=6,
    empty_annotations=0,
)


def test_scores_show_each_name_as_it_is(capsys):
    scores.print_scores(RESULT)
    lines = capsys.readouterr().out.splitlines()
    for k, name in enumerate(SHOWN, 1):
        (line,) = (x for x in lines if name in x)
        assert f"{10 * k}.00" in line


@pytest.mark.parametrize("terminal", [False, True])
def test_a_console_takes_nothing_for_markup(terminal):
    shown = io.StringIO()
    one = console.Console(file=shown, force_terminal=terminal, width=100)
    table = rich.table.Table(title="[red]title")
    table.add_column("[/b]")
    table.add_row(":cat:[bold]", style="bold")
    one.print(table)
    one.print("[/i] \x1b]0;x\x07\ntwo lines")
    text = shown.getvalue()
    for wanted in ("[red]title", "[/b]", ":cat:[bold]", "[/i] \\x1b]0;x\\x07\ntwo lines"):
        assert wanted in text
    assert "\x1b]" not in text


def test_bars_take_nothing_for_markup(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with console.counting("[/b]", 3) as count:
        count(1)
    with console.byte_bar("[/red]", 3, 0) as advance:
        advance(1)
    with console.training_bars(console.stderr()) as bars:
        bars.add_task("[/i]", total=2, text="[/u]")
    for name in ("[/b]", "[/red]", "[/i]", "[/u]"):
        assert name in sys.stderr.getvalue()


def test_pictures_show_each_name_as_it_is(tmp_path, monkeypatch):
    titles = []
    save = matplotlib.figure.Figure.savefig

    def saved(figure, path, **more):
        titles.extend(axis.get_title() for axis in figure.axes)
        return save(figure, path, **more)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", saved)
    one = example(0, uncertain=False)
    pictures.draw_examples(tmp_path / "x.png", [one._replace(class_name=x) for x in NAMES])
    assert titles[::4] == [f"reference: {x}" for x in SHOWN]
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_results_are_written_before_anything_is_shown(tmp_path, monkeypatch):
    """Else a terminal that cannot show them would lose an evaluation of hours."""

    def fails(_):
        raise UnicodeEncodeError("ascii", "\u732b", 0, 1, "not in this terminal")

    cfg = replaced(BASE, {"eval.episodes": 1, "eval.pictures": 0, "data.workers": 0})
    monkeypatch.setattr(runs.evaluate, "evaluate", lambda *args, **kwargs: RESULT)
    monkeypatch.setattr(runs.scores, "print_scores", fails)
    path = tmp_path / "p.safetensors"
    _save(path, config=cfg)
    with pytest.raises(UnicodeEncodeError):
        runs._score(
            cfg,
            tmp_path / "out",
            [runs.evaluate.test_episodes(cfg)],
            runs.model.split(runs.model.build(cfg)),
            None,
            "x",
        )
    held = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(held["per_class"]) == NAMES


FROZEN = {kind: {"architecture": "tiny", "seed": 3} for kind in ("sam", "backbone")}
TOLD = {
    "miou": 41.5,
    "fb_iou": 50,
    "per_class": dict.fromkeys(NAMES, 40.0),
    "episodes": 9,
    "episode_list_sha256": "d" * 64,
    "settings": ["eval.seed: 1 -> 2"],
}
KNOWN = {
    "config": BASE,
    "merged_channels": 192,
    "frozen": FROZEN,
    "version": "0.1.0",
    "benchmark": "[/b]",
    "classes": NAMES,
    "fold": 1,
    "step": 5,
    "results": TOLD,
    "source_name": "a\x07.pt",
    "source_sha256": "e" * 64,
}


def _save(path, **changes):
    prompt_encoder.save(path, {"x": jnp.zeros(3)}, Trained(**KNOWN | changes))
    return path


def test_every_field_is_checked():
    assert prompt_encoder.CHECKS.keys() == {x.name for x in dataclasses.fields(Trained)}


def test_what_a_file_says_is_shown_escaped(tmp_path, capsys):
    path = _save(tmp_path / "p.safetensors")
    trained = prompt_encoder.read(path)
    assert list(trained.classes) == NAMES
    assert cli.main(["weights", "show", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\x07" not in out and "\u202e" not in out
    for text in ("[/b], fold 1", r"a\x07.pt", *(f"{name} 40.00" for name in SHOWN)):
        assert text in out
    assert cli.main(["weights", "verify", str(path)]) == 0
    assert r"a\x07.pt" in capsys.readouterr().out


def test_a_card_stays_a_table(tmp_path):
    cells = {"a|b": 1.0, "<script>": 2.0, "c\nd": 3.0, "[x](y)": 4.0}
    trained = Trained(**KNOWN | {"results": TOLD | {"per_class": cells}})
    (row,) = (x for x in share.card(trained, "u/n").splitlines() if "IoU of the classes" in x)
    assert r"a\|b 1.00, \<script> 2.00, c\\nd 3.00, \[x](y) 4.00" in row


def test_a_file_sets_no_path_of_ours(tmp_path):
    paths = {
        "data": {"name": "pascal", "root": "/stranger"},
        "sam": {"model": "vit_b", "weights": "/stranger/sam"},
        "backbone": {"name": "resnet50", "weights": "/stranger/backbone"},
        "cache": {"dir": "random", "dtype": "int8"},
    }
    path = _save(tmp_path / "p.safetensors", config=Config.from_dict(paths))
    cfg = prompt_encoder.read(path).config
    assert cfg.cache == Config().cache
    assert (cfg.data.root, cfg.sam.weights) == ("", Config().sam.weights)
    assert cfg.backbone.weights == Config().backbone.weights
    assert (cfg.sam.model, cfg.data.name) == ("vit_b", "pascal")
    tiny = {"sam": {"model": "tiny", "weights": "random"}}
    path = _save(tmp_path / "q.safetensors", config=Config.from_dict(tiny))
    assert prompt_encoder.read(path).config.sam.weights == "random"


WRONG = {
    "config": [[], None, 3, {"seed": "x"}, {"seed": {}}, {"train": {"steps": True}}],
    "merged_channels": [None, True, 1.5, -1, 0, 2**40, "192"],
    "frozen": [
        None,
        {},
        FROZEN | {"sam": {"architecture": 3, "seed": 1}},
        FROZEN | {"sam": {"architecture": "x", "seed": "1"}},
        FROZEN | {"sam": {"architecture": "x", "arrays_sha256": ["a"]}},
        FROZEN | {"sam": {"architecture": "x"}},
    ],
    "version": [None, 3, ["0.1"], "0.1\n"],
    "benchmark": [3, [], {"a": 1}, "\x1b[31m", "a" * 201],
    "classes": ["bus", [1], {"bus": 1}],
    "fold": ["1", -1, 1.0, [1]],
    "step": ["5", True, 2.5, []],
    "results": [
        [],
        {"miou": 3},
        TOLD | {"miou": "41"},
        TOLD | {"miou": float("nan")},
        TOLD | {"fb_iou": 1e300},
        TOLD | {"per_class": ["a"]},
        TOLD | {"per_class": {"a": None}},
        TOLD | {"episodes": 1.5},
        TOLD | {"settings": "x"},
        TOLD | {"settings": [3]},
        TOLD | {"more": 3},
    ],
    "source_name": [3, ["x"]],
    "source_sha256": ["short", 3],
}


@pytest.mark.parametrize("field", WRONG)
def test_metadata_of_another_type_is_named(tmp_path, capsys, field):
    path = tmp_path / "p.safetensors"
    known = {"kind": "prompt_encoder", "architecture": "student_t", **KNOWN}
    known["config"] = dataclasses.asdict(BASE)
    for value in WRONG[field]:
        files.save(path, {"x": np.zeros(2, np.float32)}, known | {field: value})
        with pytest.raises(UserError) as error:
            prompt_encoder.read(path)
        inner = isinstance(value, dict) and field == "config"
        told(error, path, next(iter(value)) if inner else field)
        assert cli.main(["weights", "show", str(path)]) == 1
        told(capsys.readouterr().err, path)


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("data.image_size", 10**7, 4096),
        ("eval.episodes", 10**12, 10**6),
        ("eval.batch_size", 10**8, 1024),
        ("data.workers", 10**4, 256),
    ],
)
def test_a_file_asks_for_no_more_than_a_setting_can_be(tmp_path, capsys, name, value, most):
    path, out = tmp_path / "p.safetensors", tmp_path / "scored"
    group, _, leaf = name.partition(".")
    config = dataclasses.asdict(BASE)
    config[group][leaf] = value
    known = {"kind": "prompt_encoder", "architecture": "student_t", **KNOWN, "config": config}
    files.save(path, {"x": np.zeros(2, np.float32)}, known)
    for command in (
        ["evaluate", "--workdir", out],
        ["segment", "--reference", path, "--mask", path, "--targets", path, "--out", out],
    ):
        assert cli.main([*map(str, command), "--prompt-encoder", str(path)]) == 1
        told(capsys.readouterr().err, path, f"{name}={value} must be at most {most}")
