"""Pushing and pulling with the real client, against a hub on this machine."""

import functools
import os
import sys
import threading

import fake_hub
import pytest
from commands import PROSAM, one_line, run, status_of
from flax import nnx
from huggingface_hub import constants
from messages import check_line

from prosam_jax import cli, share
from prosam_jax.config import Config
from prosam_jax.errors import UserError
from prosam_jax.prompt.encoder import ReferencePromptEncoder
from prosam_jax.weights import files, hub, pretrained, prompt_encoder
from prosam_jax.weights.prompt_encoder import Trained

REPO = "somebody/vrp-tiny"
RESULTS = {
    "miou": 41.234,
    "fb_iou": 63.5,
    "per_class": {"bus": 40.0, "car": 42.468},
    "episodes": 1000,
    "episode_list_sha256": "d" * 64,
    "settings": ["data.shots: 1 -> 5"],
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "encoder.safetensors"
    cfg = Config.from_dict({"prompt": {"num_queries": 3}, "backbone": {"name": "tiny"}})
    encoder = ReferencePromptEncoder(cfg.prompt, cfg.distribution, 192, rngs=nnx.Rngs(0))
    frozen = {
        "sam": {"architecture": "vit_h", "arrays_sha256": "a" * 64},
        "backbone": {"architecture": "tiny", "seed": 321},
    }
    known = {"benchmark": "pascal", "fold": 1, "step": 1200, "results": RESULTS}
    trained = Trained(config=cfg, merged_channels=192, frozen=frozen, version="0.1.0", **known)
    prompt_encoder.save(path, files.leaves(encoder), trained)
    return path


@pytest.fixture
def server(tmp_path, monkeypatch):
    with fake_hub.logged_in(tmp_path, monkeypatch) as hub:
        yield hub


def test_what_is_pushed_is_pulled(file, server, tmp_path):
    address = share.push(file, REPO, endpoint=server.url)
    assert address == f"{server.url}/{REPO}/commit/{server.sha(REPO)}"
    assert server.private == {REPO: False}
    out = tmp_path / "new" / "pulled.safetensors"
    trained = share.pull(REPO, out, endpoint=server.url)
    assert out.read_bytes() == file.read_bytes()
    assert trained == prompt_encoder.read(file)
    assert os.listdir(out.parent) == [out.name]


def test_the_card_says_what_the_file_says(file, server):
    share.push(file, REPO, endpoint=server.url)
    card = server.files[REPO]["README.md"].decode()
    assert server.cards == [card]
    assert card.startswith("---\nlibrary_name: prosam_jax\n")
    for row in (
        "| results | mIoU 41.23, FB-IoU 63.50 on 1,000 episodes, list sha256 " + "d" * 64,
        "| evaluated with | data.shots: 1 -> 5 |",
        "| IoU of the classes | bus 40.00, car 42.47 |",
        "| trained on | pascal, fold 1 kept for testing |",
        "| steps | 1,200 |",
        "| SAM | vit_h, weights of sha256 " + "a" * 64,
    ):
        assert row in card
    for line in card.split("```")[1].strip().splitlines():
        assert callable(cli.parse_args(line.split()[1:]).run)
    assert f"prosam weights pull {REPO} --out" in card
    assert "--config.data.root" in card


def test_unknowns_stay_unknown_in_the_card(file):
    cfg = prompt_encoder.read(file).config
    frozen = {x: {"architecture": "tiny", "arrays_sha256": None} for x in ("sam", "backbone")}
    source = {"source_name": "vrp.pt", "source_sha256": "e" * 64}
    card = share.card(Trained(cfg, 192, frozen, "0.1.0", **source), REPO)
    for name in ("results", "steps", "trained on"):
        assert f"| {name} | unknown |" in card
    assert "| SAM | vit_h, weights of unknown sha256 |" in card
    assert f"| converted from | vrp.pt, sha256 {'e' * 64} |" in card
    assert "--config.data.fold=FOLD" in card


def test_private_repositories_are_private(file, server, tmp_path):
    share.push(file, REPO, private=True, endpoint=server.url)
    assert server.private == {REPO: True}
    share.push(file, REPO, private=True, endpoint=server.url)
    server.private[REPO] = False
    server.files[REPO] = {}
    with pytest.raises(UserError, match=REPO):
        share.push(file, REPO, private=True, endpoint=server.url)
    assert server.files == {REPO: {}}


def test_a_file_of_another_kind_is_not_put_in_place(file, server, tmp_path):
    share.push(file, REPO, endpoint=server.url)
    out = tmp_path / "out.safetensors"
    out.write_text("older")
    whole = server.files[REPO][hub.FILE]
    files.save(tmp_path / "sam", {}, {"kind": "sam", "architecture": "tiny"})
    trained = prompt_encoder.read(file)
    prompt_encoder.save(tmp_path / "hollow", {}, trained)
    for content in (
        whole[:-7],
        (tmp_path / "sam").read_bytes(),
        (tmp_path / "hollow").read_bytes(),
    ):
        server.files[REPO][hub.FILE] = content
        with pytest.raises(UserError, match=REPO):
            share.pull(REPO, out, endpoint=server.url)
        assert out.read_text() == "older"
    assert {path.name for path in tmp_path.iterdir()} <= {out.name, "sam", "hollow", "cache"}
    with pytest.raises(UserError) as error:
        share.push(tmp_path / "sam", REPO, endpoint=server.url)
    check_line(error, tmp_path / "sam", "prosam export")
    assert server.files[REPO][hub.FILE] == (tmp_path / "hollow").read_bytes()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b'{"error": "Access to it is restricted."}', "Access to it is restricted"),
        (b'{"weight_map": {"x": "model-1.safetensors"}}', "index"),
        (b"PK\3\4" + bytes(50), "not a complete safetensors file"),
        (b"", "empty"),
    ],
    ids=["pointer", "page", "answer", "index", "torch", "nothing"],
)
def test_a_repositorys_file_may_be_something_else(server, tmp_path, content, word):
    server.files[REPO], server.private[REPO] = {hub.FILE: content}, False
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=server.url)
    check_line(error, REPO, word)
    assert not (tmp_path / "x").exists()


def test_a_damaged_cache_is_mended(file, server):
    server.files[REPO], server.private[REPO] = {hub.FILE: file.read_bytes()}, False
    (cached,) = {hub.download(REPO, endpoint=server.url).resolve() for _ in range(2)}
    cached.write_bytes(bytes(cached.stat().st_size))
    assert hub.download(REPO, endpoint=server.url).read_bytes() == file.read_bytes()


def test_another_file_than_the_hub_says_is_refused(file, server, tmp_path, monkeypatch):
    server.files[REPO], server.private[REPO] = {hub.FILE: file.read_bytes()}, False
    whole = server.files[REPO][hub.FILE]
    said = {"ETag": f'"{"0" * 64}"', "X-Repo-Commit": server.sha(REPO)}
    monkeypatch.setattr(server, "resolve", lambda request, *_: request.send(200, whole, said))
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=server.url)
    check_line(error, REPO, server.url, hub.FILE, "sha256")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["a//b", "../x", "a b/c", "a/b/c", "a/b.git"])
def test_what_cannot_be_a_repository_is_named(name, server, tmp_path):
    with pytest.raises(UserError) as error:
        share.pull(name, tmp_path / "x", endpoint=server.url)
    check_line(error, name, "USER/NAME")


@pytest.mark.parametrize(
    "answer",
    [b"<html>log in</html>", b"[1]", b"{}", b"[" * 100_000],
    ids=["login page", "list", "nothing", "deep"],
)
def test_another_server_is_no_hub(server, tmp_path, monkeypatch, answer):
    """Such as a network's login page."""
    monkeypatch.setattr(server, "info", lambda request, *_: request.send(200, answer, {}))
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=server.url)
    check_line(error, server.url, REPO, "HF_ENDPOINT")


def test_a_hub_that_is_silent_is_not_waited_for(server, tmp_path, monkeypatch):
    asked, ended = threading.Event(), threading.Event()
    monkeypatch.setattr(server, "info", lambda *_: (asked.set(), ended.wait(20)))
    monkeypatch.setattr(hub, "TIMEOUT", 0.2)
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=server.url)
    ended.set()
    check_line(error, server.url, "cannot reach", "timed out")
    assert asked.is_set()


def test_a_cache_that_cannot_be_written_is_named(file, server, tmp_path, monkeypatch):
    server.files[REPO], server.private[REPO] = {hub.FILE: file.read_bytes()}, False
    (tmp_path / "taken").write_text("no folder")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "taken"))
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=server.url)
    check_line(error, tmp_path / "taken", "HF_HOME")


def test_who_is_not_logged_in_is_told(file, server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(UserError) as error:
        share.push(file, REPO, endpoint=server.url)
    check_line(error, server.url, REPO, "hf auth login")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError) as error:
        share.push(file, REPO, endpoint=server.url)
    check_line(error, server.url, "hf auth login", "HF_TOKEN")
    server.files[REPO], server.private[REPO] = {}, True
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=server.url)
    check_line(error, server.url, REPO, "hf auth login")


def test_what_is_not_there_is_named(file, server, tmp_path):
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=server.url)
    check_line(error, server.url, REPO)
    server.files[REPO], server.private[REPO] = {}, False
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=server.url)
    check_line(error, server.url, REPO, "prompt_encoder.safetensors")
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", revision="v9", endpoint=server.url)
    check_line(error, server.url, REPO, "'v9'")
    assert not (tmp_path / "x").exists()


def test_a_hub_that_cannot_be_reached_is_named(file, server, tmp_path):
    nowhere = "http://127.0.0.1:9"  # the discard port, where nothing listens
    with pytest.raises(UserError) as error:
        share.push(file, REPO, endpoint=nowhere)
    check_line(error, nowhere)
    with pytest.raises(UserError) as error:
        share.pull(REPO, tmp_path / "x", endpoint=nowhere)
    check_line(error, nowhere)


def test_a_name_may_mean_a_file_or_a_repository(monkeypatch):
    nowhere = "http://127.0.0.1:9"  # the discard port, where nothing listens
    monkeypatch.setattr(hub, "download", functools.partial(hub.download, endpoint=nowhere))
    with pytest.raises(UserError) as error:
        pretrained.find("mistyped/run")
    check_line(error, "mistyped/run", "no such file or folder", "hub", nowhere)


def test_the_missing_package_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert status_of("weights", "pull", REPO, "--out", tmp_path / "x") == 1
    one_line(capsys.readouterr().err, "huggingface_hub", "pip install 'prosam_jax[hub]'")


@pytest.mark.slow
def test_the_commands_take_the_hub_from_the_environment(file, server, tmp_path):
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    environment |= {name: os.environ[name] for name in ("HF_TOKEN", "NO_PROXY")}

    def prosam(*arguments):
        return run(*PROSAM, *arguments, **environment)

    pushed = prosam("weights", "push", file, "--repo", REPO, "--private")
    assert pushed.returncode == 0, pushed.stderr
    sha = server.sha(REPO)
    assert pushed.stdout == f"{server.url}/{REPO}/commit/{sha}\n"
    pulled = prosam("weights", "pull", REPO, "--out", tmp_path / "x", "--revision", sha)
    assert pulled.returncode == 0, pulled.stderr
    assert "mIoU 41.23" in pulled.stdout
    assert (tmp_path / "x").read_bytes() == file.read_bytes()
    shown = prosam("weights", "show", REPO)
    assert shown.returncode == 0 and "mIoU 41.23" in shown.stdout
    again = prosam("weights", "pull", REPO, "--out", tmp_path / "x")
    assert again.returncode == 1
    one_line(again.stderr, tmp_path / "x", "--force")
    missing = prosam("weights", "pull", "somebody/else", "--out", tmp_path / "y")
    assert missing.returncode == 1
    one_line(missing.stderr, server.url, "somebody/else")
