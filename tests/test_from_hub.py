"""Frozen weights from a hub: fetched with the real client from one on this machine, converted."""

import dataclasses
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import fake_hub
import hugging_face
import jax
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from commands import PROSAM, one_line, run, status_of
from conftest import assert_lines, told
from flax import nnx
from golden_recipe import image
from huggingface_hub import constants
from small import flags, small_config

from prosam_jax import SamPredictor, Segmenter, backbone, model
from prosam_jax.config import (
    BACKBONES_ON_HUB,
    HUB,
    SAMS_ON_HUB,
    BackboneConfig,
    Config,
    SAMConfig,
    SAMSettings,
    hub_file,
    replaced,
    settings,
    without_paths,
)
from prosam_jax.convert import checkpoint, engine, from_hub, layouts, weight_file
from prosam_jax.errors import UserError
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.sam import build_sam
from prosam_jax.weights import files, hub, pretrained, prompt_encoder, registry
from prosam_jax.weights.prompt_encoder import Trained
from torch_models import resnet, vgg

REPO = "facebook/sam-vit-tiny"
ENTRY = dataclasses.replace(
    registry.named("sam_vit_b_hf"),
    name="sam_tiny_hf",
    architecture="tiny",
    hub=(REPO, "model.safetensors"),
    by_hand="https://example.org has it",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as transformers publishes it, of a small SAM."""
    folder = tmp_path_factory.mktemp("published")
    hugging_face.tiny_sam(0).save_pretrained(folder)
    return folder / "model.safetensors"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub, with the small SAM among the published ones, and empty caches."""
    monkeypatch.setattr(registry, "PUBLISHED", (*registry.PUBLISHED, ENTRY))
    monkeypatch.setattr(settings, "SAMS_ON_HUB", (*SAMS_ON_HUB, "tiny"))
    monkeypatch.setattr(files, "SAMS_ON_HUB", (*SAMS_ON_HUB, "tiny"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_ASSETS_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with fake_hub.logged_in(tmp_path, monkeypatch) as hub:
        fake_hub.make_default(hub, monkeypatch)
        yield hub


def put(server, repo, content):
    server.files[repo], server.private[repo] = {"model.safetensors": content}, False


def kept(folder):
    """Files and folders that are kept, but for the lock's file."""
    found = {x.name for x in (folder / "home" / "assets/prosam_jax/weights").glob("*")}
    return {x for x in found if not x.endswith(".lock")}


def test_the_registry_has_what_the_settings_take():
    on_hub = {(x.kind, x.architecture): x for x in registry.PUBLISHED if x.hub}
    wanted = [("sam", x) for x in SAMS_ON_HUB] + [("backbone", x) for x in BACKBONES_ON_HUB]
    assert set(on_hub) == set(wanted)
    for kind, name in wanted:
        stem = f"sam_{name}" if kind == "sam" else name
        assert registry.to_get(stem) == registry.on_hub(kind, name) == on_hub[kind, name]
        assert pathlib.Path(hub_file(kind, name)).name == f"{stem}.safetensors"


def test_one_line_fetches_converts_and_keeps(published, server, tmp_path, capsys):
    put(server, REPO, published.read_bytes())
    predictor = SamPredictor.from_pretrained("sam_tiny")
    path = tmp_path / "home/assets/prosam_jax/weights/sam_tiny.safetensors"
    assert_lines(
        capsys.readouterr().err.replace("\r", "\n").splitlines()[0], (REPO, "Apache-2.0", "Meta AI")
    )
    assert kept(tmp_path) == {path.name}
    expected = SamPredictor.from_pretrained(path).model
    held, wanted = files.leaves(predictor.model), files.leaves(expected)
    assert held.keys() == wanted.keys()
    for name, x in held.items():
        np.testing.assert_array_equal(x, wanted[name])
    pixels = np.random.default_rng(2).standard_normal((1, 256, 256, 3)).astype(np.float32)
    theirs = hugging_face.tiny_sam(0).get_image_embeddings(
        torch.from_numpy(pixels).permute(0, 3, 1, 2)
    )
    ours = jax.jit(lambda sam, x: sam.encode_image(x))(predictor.model, pixels)
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), atol=5e-5)  # values up to 5
    # The second time nothing is asked for, and nothing said.
    server.files.clear()
    capsys.readouterr()
    SamPredictor.from_pretrained("sam_tiny")
    assert capsys.readouterr().err == ""


def test_it_is_what_the_command_that_uses_torch_makes(published, server, tmp_path, capsys):
    put(server, REPO, published.read_bytes())
    path, was_there = build_sam.fetch("tiny")
    assert not was_there
    flags = ["--model", "tiny", "--checkpoint", published, "--out", tmp_path / "torch.safetensors"]
    assert status_of("weights", "convert", "sam", *flags) == 0
    known, expected = (
        files.metadata(x, made_by="") for x in (path, tmp_path / "torch.safetensors")
    )
    assert known.pop("source_name") == f"{REPO}/model.safetensors"
    assert expected.pop("source_name") == "model.safetensors"
    assert known == expected  # with checksums of the source and of the arrays
    capsys.readouterr()
    assert status_of("weights", "verify", path) == 0
    said = capsys.readouterr().out
    assert_lines(said, (path, "kind sam"), (f"{REPO}/model.safetensors", "sam_tiny_hf"))


def test_a_file_in_the_default_place_comes_first(published, server, tmp_path):
    put(server, REPO, b"not asked for")
    flags = ["--model", "tiny", "--checkpoint", published]
    flags += ["--out", tmp_path / "weights/sam_tiny.safetensors"]
    assert status_of("weights", "convert", "sam", *flags) == 0
    SamPredictor.from_pretrained("sam_tiny")
    assert kept(tmp_path) == set()


def test_settings_name_the_hub(published, server, tmp_path):
    put(server, REPO, published.read_bytes())
    sam = SAMSettings.of(model="tiny", weights=HUB)
    cfg = dataclasses.replace(Config(), sam=sam, backbone=BackboneConfig.of(name="tiny"))
    cfg = replaced(cfg, {"backbone.weights": "random"})
    assert without_paths(cfg).sam.weights == HUB
    built = model.build(cfg)
    known = prompt_encoder.frozen_weights(cfg)["sam"]
    held = files.leaves(built.sam)
    assert known == {"architecture": "tiny", "arrays_sha256": files.checksum(held)}


def test_settings_of_a_training_go_to_the_hub_where_the_file_is_missing(server, tmp_path):
    cfg = replaced(Config(), {"sam.model": "tiny", "backbone.name": "vgg16"})
    used = pretrained.usable(cfg, {})
    assert (used.sam.weights, used.backbone.weights) == (HUB, HUB)
    used = pretrained.usable(cfg, {"sam.weights": "elsewhere.safetensors"})
    assert (used.sam.weights, used.backbone.weights) == ("elsewhere.safetensors", HUB)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/sam_tiny.safetensors").touch()
    used = pretrained.usable(replaced(cfg, {"backbone.name": "resnet50"}), {})
    assert used.sam.weights == "weights/sam_{model}.safetensors"
    assert used.backbone.weights == "weights/{name}.safetensors"


def test_a_trained_model_finds_its_frozen_weights(published, server, tmp_path):
    put(server, REPO, published.read_bytes())
    cfg = Config.from_dict(
        {
            "sam": {"model": "tiny"},
            "backbone": {"name": "tiny", "weights": "random"},
            "prompt": {"num_queries": 3},
            "data": {"image_size": 64},
        }
    )
    encoder = ReferencePromptEncoder(cfg.prompt, cfg.distribution, 192, rngs=nnx.Rngs(0))
    weights = files.metadata(build_sam.fetch("tiny").path, made_by="")["arrays_sha256"]
    for digest in (weights, "a" * 64):
        frozen = {
            "sam": {"architecture": "tiny", "arrays_sha256": digest},
            "backbone": {"architecture": "tiny", "seed": cfg.seed},
        }
        trained = Trained(config=cfg, merged_channels=192, frozen=frozen, version="0.1.0")
        prompt_encoder.save(tmp_path / f"{digest}.safetensors", files.leaves(encoder), trained)
    pathlib.Path(hub_file("sam", "tiny")).unlink()
    found = Segmenter.from_pretrained(tmp_path / f"{weights}.safetensors")
    assert files.checksum(files.leaves(found.model.sam)) == weights
    with pytest.raises(UserError) as error:
        Segmenter.from_pretrained(tmp_path / f"{'a' * 64}.safetensors")
    told(error, weights, "a" * 64, "sam.weights")


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("sam", "shapes", ("sam.weights=hub", "sam.model", "vit_h", "shapes", "weights list")),
        ("backbone", "resnet50", ("backbone.weights=hub", "backbone.name", "vgg16", "resnet50")),
    ],
)
def test_what_no_hub_has_is_said_by_the_settings(kind, name, words):
    owner = "sam.model" if kind == "sam" else "backbone.name"
    with pytest.raises(UserError) as error:
        replaced(Config(), {owner: name, f"{kind}.weights": HUB})
    told(error, *words)


def test_a_missing_weight_file_names_the_hub():
    with pytest.raises(UserError) as error:
        backbone.load(BackboneConfig.of(name="vgg16", weights="no.safetensors"))
    told(error, "no.safetensors is missing", "--config.backbone.weights=hub", "weights convert")
    with pytest.raises(UserError) as error:
        backbone.load(BackboneConfig.of(name="resnet50", weights="no.safetensors"))
    assert "weights=hub" not in str(error.value)


ENVIRONMENTS = [
    {},
    {"HF_HOME": "/there/hf"},
    {"XDG_CACHE_HOME": "/there/cache"},
    {"HF_ASSETS_CACHE": "$HOME/assets", "HF_HOME": "/there/hf"},
]


@pytest.mark.slow
@pytest.mark.parametrize("given", ENVIRONMENTS, ids=lambda given: "-".join(given) or "none")
def test_the_cache_is_the_clients(given):
    code = (
        "from huggingface_hub.constants import HF_ASSETS_CACHE as assets; import os.path;"
        "from prosam_jax.config import hub_file; print(assets); print(hub_file('sam', 'vit_h'))"
    )
    names = ("HF_HOME", "HF_ASSETS_CACHE", "XDG_CACHE_HOME")
    done = run(sys.executable, "-c", code, **(dict.fromkeys(names, "") | given))
    if "" in (dict.fromkeys(names, "") | given).values():  # the client takes "" for a value
        clean = {x: y for x, y in os.environ.items() if x not in names} | given
        clean["PYTHONPATH"] = str(pathlib.Path(__file__).parents[1])
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean, capture_output=True, text=True
        )
    assets, file = done.stdout.splitlines()
    assert file == f"{assets}/prosam_jax/weights/sam_vit_h.safetensors"


def _refused(published, server, tmp_path, content, *words):
    put(server, REPO, content)
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, "sam_tiny", "https://example.org has it", "get sam_tiny --from FILE", *words)
    assert kept(tmp_path) == set()


def test_a_file_cut_short_is_refused(published, server, tmp_path):
    content = published.read_bytes()[:-5]
    _refused(published, server, tmp_path, content, REPO, "not a complete safetensors file")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"error": "Access to it is restricted."}', "Access to it is restricted"),
        (b"", "empty"),
    ],
    ids=["pointer", "page", "answer", "nothing"],
)
def test_what_is_no_checkpoint_is_refused(published, server, tmp_path, content, word):
    _refused(published, server, tmp_path, content, REPO, word)


def test_a_wrong_checksum_is_refused(published, server, tmp_path, monkeypatch):
    pinned = dataclasses.replace(ENTRY, sha256="0" * 64)
    monkeypatch.setattr(registry, "PUBLISHED", (*registry.PUBLISHED[:-1], pinned))
    _refused(published, server, tmp_path, published.read_bytes(), REPO, "sha256", "0" * 64)


def test_another_network_is_refused(published, server, tmp_path):
    content = safetensors.torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)})
    _refused(published, server, tmp_path, content, "features.0.weight", "sam tiny")
    size = {"vision_encoder.patch_embed.projection.weight": torch.zeros(768, 3, 1, 1)}
    size |= {f"vision_encoder.layers.{i}.x": torch.zeros(1) for i in range(12)}
    _refused(published, server, tmp_path, safetensors.torch.save(size), "SAM vit_b", "not sam tiny")


def test_missing_and_damaged_tensors_are_named(published, server, tmp_path):
    state = safetensors.torch.load_file(published)
    left = state.pop("mask_decoder.iou_token.weight")
    content = safetensors.torch.save(state)
    _refused(published, server, tmp_path, content, "mask_decoder.iou_token.embedding", "unfilled")
    state["mask_decoder.iou_token.weight"] = left * torch.nan
    content = safetensors.torch.save(state)
    _refused(published, server, tmp_path, content, "mask_decoder.iou_token.weight", "NaN")
    state["mask_decoder.iou_token.weight"] = left.to(torch.float8_e4m3fn)
    content = safetensors.torch.save(state)
    _refused(published, server, tmp_path, content, "F8_E4M3", "float32")


def test_a_repository_without_the_file_is_named(published, server, tmp_path):
    server.files[REPO], server.private[REPO] = {"pytorch_model.bin": b"x"}, False
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, REPO, "model.safetensors", server.url, "--from FILE")
    server.files.clear()
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, REPO, server.url, "--from FILE")


def test_an_unreachable_hub_is_named(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, "sam_tiny", "cannot reach http://127.0.0.1:9", "--from FILE")


def test_offline_takes_what_the_client_has(published, server, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, "HF_HUB_OFFLINE", REPO, tmp_path / "cache", "unset it", "--from FILE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    put(server, REPO, published.read_bytes())
    cached = hub.download(REPO, "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    SamPredictor.from_pretrained("sam_tiny")
    pathlib.Path(hub_file("sam", "tiny")).unlink()
    cached.resolve().write_bytes(bytes(100))
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, "HF_HUB_OFFLINE", "damaged", cached)


def test_without_the_client_its_command_is_named(published, server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, "huggingface_hub", "pip install 'prosam_jax[hub]'")
    # Weights that are in the cache need no client.
    build_sam.fetch("tiny", source=published)
    SamPredictor.from_pretrained("sam_tiny")


def test_a_damaged_file_in_the_cache_is_refused_and_made_again(published, server, tmp_path, capsys):
    put(server, REPO, published.read_bytes())
    path, _ = build_sam.fetch("tiny")
    whole = path.read_bytes()
    for content, word in (
        (whole[:-100] + bytes(100), "sha256"),
        (whole[:-100], "not a complete safetensors file"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            SamPredictor.from_pretrained("sam_tiny")
        told(error, path, word, "prosam weights get sam_tiny")
        capsys.readouterr()
        assert status_of("weights", "get", "sam_tiny") == 0
        printed = capsys.readouterr()
        assert word in printed.err
        assert f"{path} was made" in printed.out and "--config.sam.weights=hub" in printed.out
        assert path.read_bytes() == whole
    assert status_of("weights", "get", "sam_tiny") == 0
    assert "was there already and is whole" in capsys.readouterr().out


def test_another_networks_file_in_the_cache_is_refused(published, server, tmp_path):
    path = pathlib.Path(hub_file("sam", "tiny"))
    path.parent.mkdir(parents=True)
    path.write_bytes(pathlib.Path(settings.packaged("sam", "shapes")).read_bytes())
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, path, "sam.model=shapes", "sam.model=tiny", "prosam weights get sam_tiny")
    put(server, REPO, published.read_bytes())
    assert not build_sam.fetch("tiny", check=True).was_there


def test_get_says_what_it_takes(server, capsys):
    for name, words in (
        ("sam_vit_g", ("sam_vit_g", "sam_vit_h")),
        ("resnet50", ("resnet50", "not on the hub", "prosam weights fetch resnet50")),
        ("efficientnet_lite0", ("prosam weights fetch efficientnet_lite0",)),
    ):
        assert status_of("weights", "get", name) == 1
        one_line(capsys.readouterr().err, *words)


def test_a_file_that_was_fetched_by_hand(published, server, tmp_path, capsys):
    assert status_of("weights", "get", "sam_tiny", "--from", published) == 0
    assert kept(tmp_path) == {"sam_tiny.safetensors"}
    assert status_of("weights", "get", "sam_tiny", "--from", tmp_path / "no.safetensors") == 1
    one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], "no.safetensors")
    assert kept(tmp_path) == {"sam_tiny.safetensors"}


def test_a_full_disk_leaves_nothing(published, server, tmp_path, monkeypatch, capsys):
    put(server, REPO, published.read_bytes())
    full = types.SimpleNamespace(free=0)
    shutil = types.SimpleNamespace(disk_usage=lambda _: full, rmtree=from_hub.shutil.rmtree)
    monkeypatch.setattr(from_hub, "shutil", shutil)
    assert status_of("weights", "get", "sam_tiny") == 1
    one_line(capsys.readouterr().err.splitlines(keepends=True)[-1], "sam_tiny", "HF_HOME", "0 free")
    monkeypatch.undo()
    assert kept(tmp_path) == set()


def test_a_cache_that_cannot_be_written_is_named(published, server, tmp_path):
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(UserError) as error:
        SamPredictor.from_pretrained("sam_tiny")
    told(error, tmp_path / "home")


def test_threads_make_one_file(published, server, tmp_path, monkeypatch, capsys):
    put(server, REPO, published.read_bytes())
    made, save = [], weight_file.save

    def slow(*args, **settings):
        made.append(1)
        time.sleep(0.5)
        return save(*args, **settings)

    monkeypatch.setattr(weight_file, "save", slow)
    threads = [threading.Thread(target=build_sam.fetch, args=("tiny",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert capsys.readouterr().err.count("another process is fetching sam_tiny") == 3
    SamPredictor.from_pretrained("sam_tiny")


def _killed(published, started):
    """In a process of its own: converts until it has begun to write, and then hangs."""

    def hang(part, *_):
        part = pathlib.Path(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(bytes(1000))
        started.set()
        time.sleep(60)

    registry.PUBLISHED = (*registry.PUBLISHED, ENTRY)
    files.save = hang
    build_sam.fetch("tiny", source=published)


@pytest.mark.slow
def test_a_kill_leaves_nothing_half(published, server, tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_killed, args=(published, started))
    process.start()
    assert started.wait(120)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not pathlib.Path(hub_file("sam", "tiny")).exists()
    assert kept(tmp_path) == {".sam_tiny.safetensors.part"}
    put(server, REPO, published.read_bytes())
    SamPredictor.from_pretrained("sam_tiny")
    assert kept(tmp_path) == {"sam_tiny.safetensors"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path, dtype):
    tensors = {"x": torch.randn(3, 5).to(dtype), "n": torch.tensor(7), "y": torch.randn(2, 3, 1)}
    safetensors.torch.save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = checkpoint.read(tmp_path / "x.safetensors")
    assert found.widened == ["x"]
    assert found.sha256 == registry.sha256(tmp_path / "x.safetensors")
    for name, x in tensors.items():
        assert found.tensors[name].shape == x.shape
        np.testing.assert_array_equal(found.tensors[name], x.float() if name != "n" else x)
    assert found.tensors["x"].dtype == np.float32


def _timm_vgg(batch_norm):
    """timm's names: torchvision's but for the classifier, as convolutions (a narrow one)."""
    state = dict(vgg.vgg16_bn(0).state_dict() if batch_norm else vgg.vgg16(0).state_dict())
    state = {x: y for x, y in state.items() if x.startswith("features.")}
    shapes = {"pre_logits.fc1": (8, 512, 7, 7), "pre_logits.fc2": (8, 8, 1, 1), "head.fc": (10, 8)}
    for name, shape in shapes.items():
        state |= {f"{name}.weight": torch.ones(shape), f"{name}.bias": torch.ones(shape[0])}
    return state


def _timm_resnet():
    """timm's names are torchvision's."""
    classifier = {"fc.weight": torch.ones(10, 2048), "fc.bias": torch.ones(10)}
    return dict(resnet.resnet50_torchvision(0).state_dict()) | classifier


BACKBONE_TWINS = {
    "vgg16": (lambda: _timm_vgg(False), lambda: vgg.vgg16(0)),
    "vgg16_bn": (lambda: _timm_vgg(True), lambda: vgg.vgg16_bn(0)),
    "resnet50_torchvision": (_timm_resnet, lambda: resnet.resnet50_torchvision(0)),
}


@pytest.fixture
def unpinned(monkeypatch):
    """The registry without the checksums of the published files."""
    entries = tuple(dataclasses.replace(x, sha256=None) for x in registry.PUBLISHED)
    monkeypatch.setattr(registry, "PUBLISHED", entries)


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONE_TWINS)
def test_ports_of_timm_give_torchs_features(name, server, unpinned, tmp_path):
    state, twin = BACKBONE_TWINS[name]
    repository, _ = registry.on_hub("backbone", name).hub
    content = safetensors.torch.save({x: y.contiguous() for x, y in state().items()})
    put(server, repository, content)
    ours = backbone.load(BackboneConfig.of(name=name, weights=HUB))
    images = image(0, 1, 65, 81)
    taps = jax.jit(backbone.target_taps)(ours, np.moveaxis(images, 1, -1))
    for x, wanted in zip(taps, twin()(torch.from_numpy(images)), strict=True):
        wanted = np.moveaxis(wanted.numpy(), 1, -1)
        np.testing.assert_allclose(x, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
def test_dinov2_s_gives_transformers_features(server, unpinned, tmp_path):
    theirs = hugging_face.dinov2(384, 12, 6, 0)
    theirs.save_pretrained(tmp_path)
    put(server, "facebook/dinov2-small", (tmp_path / "model.safetensors").read_bytes())
    ours = backbone.load(BackboneConfig.of(name="dinov2_vits14", weights=HUB))
    images = image(0, 1, 14 * 37, 14 * 37)
    taps = jax.jit(backbone.target_taps)(ours, np.moveaxis(images, 1, -1))
    hidden = theirs(torch.from_numpy(images), output_hidden_states=True).hidden_states
    second, third, last = (
        theirs.layernorm(hidden[i])[:, 1:].reshape(1, 37, 37, 384).numpy() for i in (6, 9, 12)
    )
    for x, wanted in ((taps.merged, np.concatenate([second, third], -1)), (taps.prior, last)):
        np.testing.assert_allclose(x, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dim", "depth", "registers"),
    [
        ("dinov2_vits14", 384, 12, 0),
        ("dinov2_vitb14", 768, 12, 0),
        ("dinov2_vitl14", 1024, 24, 0),
        ("dinov2_vitl14_reg", 1024, 24, 4),
    ],
)
def test_every_name_of_transformers_dinov2_has_its_place(name, dim, depth, registers, tmp_path):
    """One block's names as they are saved, repeated, with the shapes of the published size."""
    hugging_face.dinov2(dim, 1, dim // 64, 0, registers=registers).save_pretrained(tmp_path)
    saved = checkpoint.read(tmp_path / "model.safetensors").tensors
    source = {
        x.replace(".layer.0.", f".layer.{i}."): y for x, y in saved.items() for i in range(depth)
    }
    table = layouts.table(tmp_path, source, "backbone", name)
    specs = files.leaves(
        files.abstract(lambda rngs: backbone.build(BackboneConfig.of(name=name), rngs=rngs))
    )
    assert engine.convert(source, *table, specs).keys() == specs.keys()


@pytest.mark.slow
def test_training_and_evaluation_fetch_what_they_need(published, server, tmp_path):
    """Each in one command, also of a run that was made where the cache is another."""
    put(server, REPO, published.read_bytes())
    cfg = small_config(
        tmp_path / "voc",
        sam={"model": "tiny", "weights": HUB, "image_size": 0},
        train={"steps": 1, "eval_every": 0},
        eval={"episodes": 1, "pictures": 0},
    )
    path, run = pathlib.Path(hub_file("sam", "tiny")), tmp_path / "run"
    assert status_of("train", "--workdir", run, *flags(cfg)) == 0
    whole = path.read_bytes()
    for command in (("train", *flags(cfg)), ("evaluate", "--checkpoint=latest")):
        path.unlink()
        assert status_of(command[0], "--workdir", run, *command[1:]) == 0
        assert path.read_bytes() == whole
    digest = files.metadata(path, made_by="")["arrays_sha256"]
    assert prompt_encoder.read_frozen(run)["sam"]["arrays_sha256"] == digest


@pytest.mark.exhaustive
def test_vit_b_gives_transformers_masks(server, tmp_path):
    """In its published size, from a hub to a click's masks."""
    theirs = hugging_face.published_sam("vit_b", 0)
    theirs.save_pretrained(tmp_path)
    put(server, "facebook/sam-vit-base", (tmp_path / "model.safetensors").read_bytes())
    sam = SamPredictor.from_pretrained("sam_vit_b").model
    pixels = np.random.default_rng(0).standard_normal((1, 1024, 1024, 3)).astype(np.float32)
    points, labels = np.array([[[333.0, 610.0]]], np.float32), np.array([[1]], np.int32)
    found = theirs(
        pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        input_points=torch.from_numpy(points)[:, None],
        input_labels=torch.from_numpy(labels)[:, None],
    )

    @jax.jit
    def ours(sam, pixels, points, labels):
        sparse, dense = sam.prompt_encoder(points=points, labels=labels)
        return sam.decode(sam.encode_image(pixels), sparse, dense, multimask_output=True)

    masks, iou = ours(sam, pixels, points, labels)
    wanted = found.pred_masks[:, 0].numpy()
    np.testing.assert_allclose(masks, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(iou, found.iou_scores[:, 0], rtol=0, atol=1e-5)
    assert sam.cfg == SAMConfig.vit_b()


@pytest.mark.slow
def test_the_command_needs_no_torch_and_takes_the_hub_from_the_environment(
    published, server, tmp_path
):
    """In a process where importing torch fails, against a mirror that HF_ENDPOINT names."""
    content = pathlib.Path(published).read_bytes()
    put(server, "facebook/sam-vit-base", content)
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "elsewhere")}
    environment |= {name: os.environ[name] for name in ("HF_TOKEN", "NO_PROXY")}
    blocked = tmp_path / "blocked"
    (blocked / "torch").mkdir(parents=True)
    (blocked / "torch/__init__.py").write_text("raise ModuleNotFoundError('torch is not here')")
    root = pathlib.Path(__file__).parents[1]
    environment["PYTHONPATH"] = f"{blocked}:{root}"
    # The repository has a SAM of another size, which is found out without torch as well.
    refused = run(*PROSAM, "weights", "get", "sam_vit_b", **environment)
    assert refused.returncode == 1
    one_line(refused.stderr.splitlines(keepends=True)[-1], "SAM tiny", "sam_vit_b", "--from FILE")
    done = run(sys.executable, "-c", WITHOUT_TORCH, server.url, REPO, **environment)
    assert done.returncode == 1, done.stderr
    put(server, REPO, content)
    done = run(sys.executable, "-c", WITHOUT_TORCH, server.url, REPO, **environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elsewhere/assets/prosam_jax/weights/sam_tiny.safetensors").is_file()


WITHOUT_TORCH = """
import dataclasses, sys
from prosam_jax.weights import registry
from prosam_jax.sam import build_sam
entry = dataclasses.replace(
    registry.named("sam_vit_b_hf"), architecture="tiny", hub=(sys.argv[2], "model.safetensors")
)
registry.PUBLISHED = (entry,)
print(build_sam.fetch("tiny"))
assert "torch" not in sys.modules
"""
