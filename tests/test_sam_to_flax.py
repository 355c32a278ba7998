import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors
import torch
from conftest import assert_lines, told
from sam_pairs import convert, published_shapes

import prosam_jax
from prosam_jax import cli
from prosam_jax.config import SAMConfig
from prosam_jax.convert import engine
from prosam_jax.convert.rules import sam as sam_rules
from prosam_jax.sam.model import Sam
from prosam_jax.weights import files
from torch_models import sam

ROOT = pathlib.Path(__file__).parents[1]
CFG = SAMConfig.tiny()


@pytest.fixture(scope="module")
def torch_sam():
    return sam.build(CFG, 0)


@pytest.fixture(scope="module")
def checkpoint(torch_sam, tmp_path_factory):
    path = tmp_path_factory.mktemp("sam") / "sam.pth"
    torch.save(torch_sam.state_dict(), path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "weights" / "sam.safetensors"


def _run(checkpoint, out, model="tiny"):
    return cli.main(
        [
            "weights",
            "convert",
            "sam",
            "--model",
            model,
            "--checkpoint",
            str(checkpoint),
            "--out",
            str(out),
        ]
    )


def _error(capsys, checkpoint, out, model="tiny"):
    assert _run(checkpoint, out, model) == 1
    assert not out.parent.exists()
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err


def _command(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.slow
def test_command(checkpoint, out):
    done = _command(
        "convert/sam_to_flax.py", "--model", "tiny", "--checkpoint", checkpoint, "--out", out
    )
    assert done.returncode == 0, done.stderr
    source, result = (hashlib.sha256(p.read_bytes()).hexdigest() for p in (checkpoint, out))
    assert_lines(
        done.stdout,
        (checkpoint, source),
        ("188 arrays", "2,834,400"),
        (f"wrote {out}", f"{out.stat().st_size:,} bytes", result),
    )
    with safetensors.safe_open(out, framework="numpy") as file:
        facts = files.read_metadata(file, out)
        assert len(facts.pop("arrays_sha256")) == 64
        assert facts == {
            "format": files.FORMAT,
            "kind": "sam",
            "architecture": "tiny",
            "source_name": "sam.pth",
            "source_sha256": source,
            "converter_version": prosam_jax.__version__,
        }


@pytest.mark.slow
def test_failed_command_says_why_in_one_line(tmp_path, out):
    done = _command(
        "-m", "convert.sam_to_flax", "--model", "tiny", "--checkpoint", "no.pth", "--out", out
    )
    assert done.returncode == 1
    told(done.stderr, "no.pth")
    assert not os.listdir(tmp_path)


def test_loaded_file_is_torchs_sam(torch_sam, checkpoint, out):
    assert _run(checkpoint, out) == 0
    loaded = files.load(
        lambda rngs: Sam(CFG, rngs=rngs), out, kind="sam", architecture="tiny", made_by=""
    )
    held, expected = files.leaves(loaded), files.leaves(convert(torch_sam, CFG))
    assert held.keys() == expected.keys()
    for name, x in held.items():
        np.testing.assert_array_equal(x, expected[name])
    upscaling = torch_sam.mask_decoder.output_upscaling[3].weight.permute(2, 3, 1, 0)
    np.testing.assert_array_equal(held["mask_decoder.output_upscaling.3.kernel"], upscaling)


def test_second_conversion_makes_equal_bytes_and_says_so(checkpoint, out, capsys):
    assert _run(checkpoint, out) == 0
    first = out.read_bytes()
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"wrote {out}, ")
    assert _run(checkpoint, out) == 0
    assert out.read_bytes() == first
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"replaced {out}, ")
    assert os.listdir(out.parent) == [out.name]


def test_half_precision_is_mentioned(torch_sam, tmp_path, out, capsys):
    half = {name: x.half() for name, x in torch_sam.state_dict().items()}
    torch.save({"state_dict": half}, tmp_path / "half.pth")
    assert _run(tmp_path / "half.pth", out) == 0
    assert "widened 188 half-precision tensors" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["vit_b", pytest.param("vit_l", marks=pytest.mark.exhaustive)])
def test_rules_cover_the_published_sizes(model):
    source = {
        name: np.broadcast_to(np.float32(0), shape)
        for name, shape in published_shapes(model).items()
    }
    cfg = SAMConfig.named(model)
    specs = files.leaves(files.abstract(lambda rngs: Sam(cfg, rngs=rngs)))
    arrays = engine.convert(source, sam_rules.META_RULES, (), specs)
    assert len(arrays) == len(source) == {"vit_b": 314, "vit_l": 482, "vit_h": 594}[model]


def test_unknown_model_is_named(checkpoint, out, capsys):
    told(_error(capsys, checkpoint, out, "vit_g"), "--model='vit_g'", "vit_b")


def test_other_size_is_recognised(checkpoint, out, capsys):
    told(_error(capsys, checkpoint, out, "vit_h"), checkpoint, "vit_h", "--model tiny")


def test_wrong_tensors_are_all_reported(torch_sam, tmp_path, out, capsys):
    state = dict(torch_sam.state_dict())
    state["mask_decoder.iou_token.weights"] = state.pop("mask_decoder.iou_token.weight")
    state["image_encoder.pos_embed"] = torch.zeros(1, 16, 15, 48)
    state["image_encoder.neck.1.bias"] = torch.full((256,), torch.nan)
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 256, dtype=torch.float64)
    torch.save(state, tmp_path / "wrong.pth")
    told(
        _error(capsys, tmp_path / "wrong.pth", out),
        *(tmp_path / "wrong.pth", "sam.model=tiny"),
        *("image_encoder.pos_embed (1, 16, 16, 48)", "image_encoder.pos_embed (1, 16, 15, 48)"),
        *("NaN", "image_encoder.neck.1.bias"),
        *("prompt_encoder.no_mask_embed.weight", "float64", "float32"),
        *("no rule", "mask_decoder.iou_token.weights"),
        *("unfilled", "mask_decoder.iou_token.embedding"),
    )


def test_checkpoint_is_not_overwritten(checkpoint, capsys):
    before = checkpoint.read_bytes()
    assert _run(checkpoint, checkpoint) == 1
    told(capsys.readouterr().err, f"--out {checkpoint}")
    assert checkpoint.read_bytes() == before


def test_failed_write_leaves_nothing(checkpoint, out, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert _run(checkpoint, out) == 1
    told(capsys.readouterr().err, "No space left on device")
    assert os.listdir(out.parent) == []
