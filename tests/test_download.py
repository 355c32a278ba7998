import dataclasses
import hashlib
import io
import os
import pathlib
import re
import shutil
import socket
import threading

import numpy as np
import pytest
import rich.console
import safetensors.numpy
from file_server import (
    CUT,
    DATA,
    DIGEST,
    OTHER,
    announcing,
    cut,
    failure,
    fetch,
    page,
    published,
    ranges,
    serving,
    status,
)

from prosam_jax.weights import __main__ as command
from prosam_jax.weights import download, registry


@pytest.fixture
def server():
    with serving() as served:
        yield served


@pytest.fixture
def entry(server):
    return published(server)


@pytest.fixture
def unknown(server):
    """An entry of which neither checksum nor size are known."""
    return published(server, sha256=None, size=None)


def _steps(folder):
    target = folder / "x.pth"
    return (
        f"; to get it by hand, a page links to it; put it at {target}, check it with: python -m "
        f"prosam_jax.weights verify {target}, then: prosam weights convert sam --model vit_b "
        f"--checkpoint {target} --out weights/sam_vit_b.safetensors"
    )


def test_a_whole_file_comes_in_one_request(server, entry, tmp_path):
    fetched = fetch(entry, tmp_path / "new" / "folder")
    assert fetched.check == f"sha256 {DIGEST}, as published"
    assert not fetched.was_there
    assert server.requests == [(None, None)]
    assert server.agents == {"prosam_jax"}


def test_a_file_that_is_there_is_verified_and_not_fetched(server, entry, tmp_path):
    (tmp_path / "x.pth").write_bytes(DATA)
    assert fetch(entry, tmp_path).was_there
    (tmp_path / "x.pth").write_bytes(OTHER)
    message = failure(entry, tmp_path)
    assert message.endswith(
        "it is damaged or another file; delete it and run the same command again"
    )
    assert (tmp_path / "x.pth").read_bytes() == OTHER
    assert server.requests == []


def test_a_prefix_of_the_checksum_suffices(server, entry, tmp_path):
    fetched = fetch(dataclasses.replace(entry, sha256=DIGEST[:8], size=None), tmp_path)
    assert fetched.check == f"sha256 {DIGEST}, as published in its first 8 digits"


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, entry, tmp_path, code):
    server.answers.append(status(code))
    fetch(entry, tmp_path)
    assert len(server.requests) == 2


@pytest.mark.parametrize(("code", "reason"), [(404, "Not Found"), (403, "Forbidden")])
def test_a_refusal_is_final_and_says_what_to_do(server, entry, tmp_path, code, reason):
    server.answers.append(status(code))
    assert failure(entry, tmp_path) == f"{server.url} answers {code} {reason}{_steps(tmp_path)}"
    assert len(server.requests) == 1
    assert not os.listdir(tmp_path)


def test_without_a_network_the_steps_by_hand_are_told(entry, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        message = failure(dataclasses.replace(entry, url=url), tmp_path)
    assert message.startswith(f"{url} cannot be reached ([Errno ")
    assert message.endswith(f"Connection refused){_steps(tmp_path)}")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("length", [len(DATA) - 999, len(DATA) + 999])
def test_an_announced_size_other_than_the_published_is_refused(server, entry, tmp_path, length):
    server.answers.append(announcing(length))
    expected = f"{server.url} has {length:,} bytes instead of 3,000,017{_steps(tmp_path)}"
    assert failure(entry, tmp_path) == expected
    assert len(server.requests) == 1
    assert not os.listdir(tmp_path)


def test_too_long_an_announcement_is_seen_through(server, entry, tmp_path):
    """The file is whole at the first attempt; the second finds nothing behind it."""
    server.answers.append(announcing(len(DATA) + 999))
    fetch(dataclasses.replace(entry, size=None), tmp_path)
    assert ranges(server) == [None, "bytes=3000017-"]


def test_too_short_an_announcement_fails_by_the_checksum(server, entry, tmp_path):
    server.answers.append(announcing(CUT))
    message = failure(dataclasses.replace(entry, size=None), tmp_path)
    short = hashlib.sha256(DATA[:CUT]).hexdigest()
    assert message.startswith(f"{server.url} gave a wrong file: {tmp_path / 'x.pth.part'} has ")
    assert f" has sha256 {short}, but sam_vit_b {DIGEST}; to get it by hand" in message
    assert len(server.requests) == 1
    assert not os.listdir(tmp_path)


def test_wrong_bytes_are_refused_and_not_kept(server, entry, tmp_path):
    server.data = OTHER
    message = failure(entry, tmp_path)
    assert f"gave a wrong file: {tmp_path / 'x.pth.part'} has sha256 " in message
    assert message.endswith(_steps(tmp_path))
    assert len(server.requests) == 1
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        page("text/html; charset=utf-8", b"Log in to this network"),
        page("application/octet-stream", b"\n<!DOCTYPE html><body>Log in to this network</body>"),
    ],
    ids=["by its type", "by its text"],
)
def test_a_web_page_is_refused_and_the_part_stays(server, entry, tmp_path, answer):
    entry = dataclasses.replace(entry, size=None)
    server.answers.append(answer)
    expected = f"{server.url} gave a web page instead of the file{_steps(tmp_path)}"
    assert failure(entry, tmp_path) == expected
    assert not os.listdir(tmp_path)
    server.answers += [cut(), answer]
    assert failure(entry, tmp_path) == expected
    assert (tmp_path / "x.pth.part").read_bytes() == DATA[:CUT]


def test_without_a_checksum_half_a_safetensors_file_is_refused(server, unknown, tmp_path):
    entry = dataclasses.replace(unknown, file="x.safetensors")
    server.data = safetensors.numpy.save({"x": np.ones((300, 7), np.float32)})
    server.answers.append(announcing(5000, 5000))
    assert " is no complete safetensors file (" in failure(entry, tmp_path)
    assert not os.listdir(tmp_path)
    assert download.fetch(entry, tmp_path).path.read_bytes() == server.data


@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk_is_told_before_anything_is_written(
    server, entry, tmp_path, monkeypatch, known
):
    entry = entry if known else dataclasses.replace(entry, size=None)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert failure(entry, tmp_path, OSError) == (
        f"sam_vit_b takes 3,000,017 more bytes, {tmp_path} has 1,000,000 free; "
        "make room, or name another folder"
    )
    assert not os.listdir(tmp_path)
    (tmp_path / "x.pth.part").write_bytes(DATA[:2_500_000])
    fetch(entry, tmp_path)
    assert len(server.requests) == 2


def test_a_part_that_will_be_dropped_counts_as_room(entry, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1))
    (tmp_path / "x.pth.part").write_bytes(DATA + b"more")
    fetch(entry, tmp_path)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_only(server, entry, tmp_path, monkeypatch, terminal):
    shown = io.StringIO()
    console = rich.console.Console(file=shown, force_terminal=terminal, width=100)
    monkeypatch.setattr(download, "_console", lambda: console)
    fetch(entry, tmp_path)
    if terminal:
        assert re.search(r"x\.pth .*3\.0/3\.0 MB", shown.getvalue())
    else:
        assert shown.getvalue() == ""


def test_two_fetches_of_one_file_do_no_harm(server, entry, tmp_path):
    halfway, go_on = threading.Event(), threading.Event()

    def slow(handler):
        handler.start(200, Content_Length=len(DATA))
        handler.wfile.write(DATA[:CUT])
        handler.wfile.flush()
        halfway.set()
        go_on.wait(20)
        handler.wfile.write(DATA[CUT:])

    server.answers.append(slow)
    results = []
    first = threading.Thread(target=lambda: results.append(download.fetch(entry, tmp_path)))
    first.start()
    try:
        assert halfway.wait(20)
        part, target = tmp_path / "x.pth.part", tmp_path / "x.pth"
        assert failure(entry, tmp_path) == (
            f"{part} is in use: another process fetches {target}; wait until it has ended"
        )
        assert part.exists()
    finally:
        go_on.set()
        first.join(20)
    assert len(server.requests) == 1
    assert results[0].path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["x.pth"]


def test_a_part_finished_by_another_process_is_not_written_to(entry, tmp_path, monkeypatch):
    part, target = tmp_path / "x.pth.part", tmp_path / "x.pth"

    def rename_first(*_):
        part.rename(target)
        target.write_bytes(DATA)

    monkeypatch.setattr(download.fcntl, "flock", rename_first)
    assert failure(entry, tmp_path).startswith(f"{part} is in use")
    assert target.read_bytes() == DATA


def test_the_command_tells_what_comes_next(server, entry, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "PUBLISHED", (entry,))
    monkeypatch.chdir(tmp_path)
    path = pathlib.Path("weights") / "x.pth"
    for state in ("is fetched", "was there already"):
        assert command.main(["fetch", "sam_vit_b"]) == 0
        assert capsys.readouterr() == (
            f"{path} {state}\nsha256 {DIGEST}, as published\nlicence Apache-2.0, Meta AI\n"
            "next: prosam weights convert sam --model vit_b --checkpoint weights/x.pth "
            "--out weights/sam_vit_b.safetensors\n",
            "",
        )
    assert path.read_bytes() == DATA
    assert len(server.requests) == 1
