import dataclasses
import errno
import functools
import gc
import hashlib
import io
import itertools
import multiprocessing
import os
import re
import shutil
import socket
import sys
import threading
import time

import fake_hub
import huggingface_hub
import numpy as np
import pytest
import rich.console
import safetensors.numpy
from conftest import told
from file_server import CUT, DATA, OTHER, reply, serve, serving
from huggingface_hub import constants

from prosam_jax import console
from prosam_jax.errors import UserError
from prosam_jax.weights import download, hub, registry

DIGEST = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def entry(server):
    """`DATA` at the server, its checksum and size known."""
    return dataclasses.replace(
        registry.named("sam_vit_b"),
        file="x.pth",
        url=server.url,
        sha256=DIGEST,
        size=len(DATA),
        by_hand="a page links to it",
    )


@pytest.fixture
def part(tmp_path):
    return tmp_path / "x.pth.part"


def _fetch(entry, folder, data=DATA):
    fetched = download.fetch(entry, folder)
    assert fetched.path == folder / entry.file
    assert fetched.path.read_bytes() == data
    assert os.listdir(folder) == [entry.file]
    return fetched


def _failure(entry, folder, kind=ValueError):
    """The message, of one line, of a fetch that fails and leaves nothing under the final name."""
    with pytest.raises(kind) as error:
        download.fetch(entry, folder)
    message = str(error.value)
    assert "\n" not in message
    assert not {entry.file, f"{entry.file}.lock"} & set(os.listdir(folder))
    return message


def _tells_how_by_hand(message, folder):
    steps = f"--checkpoint {folder / 'x.pth'} --out weights/sam_vit_b.safetensors"
    return "a page links to it" in message and message.endswith(steps)


def test_a_whole_file_comes_in_one_request_and_is_then_verified_only(server, entry, tmp_path):
    folder = tmp_path / "new" / "folder"
    fetched = _fetch(entry, folder)
    assert DIGEST in fetched.check and not fetched.was_there
    assert _fetch(entry, folder).was_there
    assert server.ranges == [None]
    fetched.path.write_bytes(OTHER)
    with pytest.raises(UserError) as error:
        download.fetch(entry, folder)
    told(error, fetched.path, "delete it")
    assert fetched.path.read_bytes() == OTHER


def test_broken_and_silent_connections_go_on_where_they_ended(server, entry, tmp_path, monkeypatch):
    hung_up, ends = threading.Event(), range(300_000, 3_000_000, 300_000)
    assert len(ends) > 2 * len(download.WAITS)  # progress earns new attempts
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    server.answers.append(serve(upto=ends[0], then=lambda: hung_up.wait(20)))
    server.answers += [serve(upto=end) for end in ends[1:]]
    _fetch(entry, tmp_path)
    hung_up.set()
    assert server.ranges == [None, *(f"bytes={end}-" for end in ends)]


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_asked_again_and_a_later_call_goes_on(server, entry, tmp_path, part, code):
    busy = reply(code, Content_Length=0)
    server.answers += [busy, serve(upto=CUT), *[busy] * 3]
    message = _failure(entry, tmp_path, OSError)
    assert f"{CUT:,}" in message and str(code) in message and server.url in message
    assert part.read_bytes() == DATA[:CUT]
    assert len(server.ranges) == 5
    _fetch(entry, tmp_path)
    assert server.ranges[5:] == [f"bytes={CUT}-"]


def test_a_killed_process_is_no_obstacle_and_the_next_goes_on(server, entry, tmp_path, part):
    ended = threading.Event()
    server.answers.append(serve(upto=CUT, then=lambda: ended.wait(60)))
    process = multiprocessing.get_context("spawn").Process(
        target=download.fetch, args=(entry, tmp_path)
    )
    process.start()
    while process.is_alive() and not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.kill()
    process.join()
    ended.set()
    kept = part.stat().st_size
    assert 0 < kept <= CUT and part.read_bytes() == DATA[:kept]
    _fetch(entry, tmp_path)
    assert server.ranges == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("status", [200, 206])
def test_a_server_heedless_of_ranges_is_taken_from_the_start(server, entry, tmp_path, part, status):
    part.write_bytes(DATA[:CUT])
    server.answers.append(reply(status, DATA, Content_Length=len(DATA)))
    _fetch(dataclasses.replace(entry, size=None), tmp_path)


@pytest.mark.parametrize("size", [len(DATA), None])
@pytest.mark.parametrize("left", [DATA, DATA + b"more", OTHER[:CUT]], ids=["all", "long", "wrong"])
def test_an_older_part_is_taken_if_it_proves_right(server, entry, tmp_path, part, left, size):
    part.write_bytes(left)
    _fetch(dataclasses.replace(entry, size=size), tmp_path)
    assert (None in server.ranges) == (left != DATA)


def test_wrong_bytes_are_refused_and_not_kept(server, entry, tmp_path, part):
    server.data = OTHER
    for left in (b"", DATA[:CUT]):
        part.write_bytes(left)
        message = _failure(entry, tmp_path)
        assert hashlib.sha256(OTHER).hexdigest() in message and DIGEST in message
        assert _tells_how_by_hand(message, tmp_path)
        assert not os.listdir(tmp_path)


def test_without_a_checksum_each_connection_begins_anew(server, entry, tmp_path, part):
    unknown = dataclasses.replace(entry, sha256=None, size=None)
    part.write_bytes(OTHER[:CUT])
    server.answers.append(serve(upto=CUT))
    _fetch(unknown, tmp_path)
    assert server.ranges == [None, None]
    server.data = safetensors.numpy.save({"x": np.ones((300, 7), np.float32)})
    half = dataclasses.replace(unknown, file="x.safetensors")
    (tmp_path / "x.pth").unlink()
    server.answers.append(reply(200, server.data[:5000], Content_Length=5000))
    assert "is not a complete safetensors file" in _failure(half, tmp_path)
    _fetch(half, tmp_path, server.data)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (reply(404, Content_Length=0), "404"),
        (reply(200, b"Log in", Content_Length=6, Content_Type="text/html; charset=x"), "web page"),
        (reply(200, b"part", Content_Length=4), f"4 bytes instead of {len(DATA):,}"),
    ],
    ids=["status", "page", "size"],
)
def test_what_is_not_the_file_is_refused_and_the_part_stays(
    server, entry, tmp_path, part, answer, what
):
    for left in ([], [part.name]):
        server.answers.append(answer)
        message = _failure(entry, tmp_path)
        assert server.url in message and what in message and _tells_how_by_hand(message, tmp_path)
        assert os.listdir(tmp_path) == left
        part.write_bytes(DATA[:CUT])
    assert len(server.ranges) == 2


def _circle(handler):
    handler.server.answers.append(_circle)
    handler.start(302, Location="/file", Content_Length=0)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (_circle, "infinite loop"),
        (reply(302, Location="http://[::1/file", Content_Length=0), "Invalid IPv6 URL"),
        (reply(302, Location="file:///etc/passwd", Content_Length=0), "file:///etc/passwd"),
        (reply(200, Content_Length="9" * 5000), f"0 of {len(DATA):,} bytes"),
    ],
    ids=["in circles", "no address", "here", "no number"],
)
# Where an address cannot be read, urllib forgets to close the answer that has it.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_server_that_leads_astray_is_named(server, entry, tmp_path, answer, what):
    server.answers += [answer] * 4
    message = _failure(entry, tmp_path, (UserError, OSError))
    gc.collect()
    assert server.url in message and what in message
    assert not any((tmp_path / name).stat().st_size for name in os.listdir(tmp_path))


def test_a_body_without_an_end_fills_no_disk(server, entry, tmp_path):
    sent = []

    def endless(handler):
        handler.start(200)  # without a length
        while len(sent) < 300:
            handler.wfile.write(OTHER[: 1 << 20])
            sent.append(1 << 20)

    server.answers.append(endless)
    message = _failure(entry, tmp_path)
    assert server.url in message and f"{len(DATA):,}" in message
    assert not os.listdir(tmp_path) and len(sent) < 100


def test_a_part_of_a_file_is_not_taken_for_it(server, entry, tmp_path):
    server.answers.append(reply(206, DATA[:5000], Content_Length=5000))
    message = _failure(dataclasses.replace(entry, sha256=None, size=None), tmp_path)
    assert server.url in message and "a part of the file" in message
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["x.pth", "x.pth.part", "x.pth.lock"])
def test_a_pipe_in_a_files_place_is_named(entry, tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError) as error:
        download.fetch(entry, tmp_path)
    told(error, tmp_path / name, "pipe", "delete it")


def test_a_disk_that_fills_up_is_named(entry, tmp_path, part, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(part), "open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left on device: ") as error:
        download.fetch(entry, tmp_path)
    assert error.value.filename == str(part)


def test_without_a_terminal_a_line_a_minute_tells_how_far_it_is(
    server, entry, tmp_path, monkeypatch, capfd
):
    minutes = itertools.count(step=61)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(minutes)))
    _fetch(entry, tmp_path)
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == f"x.pth, bytes: {len(DATA):,} of {len(DATA):,}"


def test_without_a_network_the_steps_by_hand_are_told_at_once(entry, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/x"
        message = _failure(dataclasses.replace(entry, url=url), tmp_path)
    assert url in message and _tells_how_by_hand(message, tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(entry, tmp_path, part, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    message = _failure(dataclasses.replace(entry, size=None), tmp_path, OSError)
    assert "3,000,017" in message and "1,000,000" in message
    assert not os.listdir(tmp_path)
    part.write_bytes(DATA[:2_500_000])
    _fetch(entry, tmp_path)


def test_a_bar_of_bytes_is_shown_on_a_terminal(entry, tmp_path, monkeypatch):
    terminal = rich.console.Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "stderr", lambda: terminal)
    _fetch(entry, tmp_path)
    assert re.search(r"x\.pth .*3\.0/3\.0 MB", terminal.file.getvalue())


@pytest.mark.parametrize("name", ["x.pth", "x.pth.part", "x.pth.lock"])
def test_nothing_is_fetched_through_a_link(server, entry, tmp_path, name):
    """In a folder that others may write to, it would overwrite what the link points to."""
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    folder.mkdir()
    if name != "x.pth":  # a link to a file is the file itself, which is verified only
        elsewhere.write_text("precious")
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(UserError) as error:
        download.fetch(entry, folder)
    told(error, folder / name, "link", "delete it")
    assert os.listdir(folder) == [name]
    assert elsewhere.exists() == (name != "x.pth")
    assert not elsewhere.exists() or elsewhere.read_text() == "precious"


def test_a_link_to_the_file_is_verified(entry, tmp_path):
    (tmp_path / "there").write_bytes(DATA)
    (tmp_path / "x.pth").symlink_to("there")
    assert download.fetch(entry, tmp_path).was_there
    assert (tmp_path / "x.pth").is_symlink()


def test_two_fetches_of_one_file_do_no_harm(server, entry, tmp_path):
    halfway, go_on, results = threading.Event(), threading.Event(), []
    server.answers.append(serve(upto=CUT, then=lambda: (halfway.set(), go_on.wait(20))))
    first = threading.Thread(target=lambda: results.append(download.fetch(entry, tmp_path)))
    first.start()
    try:
        assert halfway.wait(20)
        with pytest.raises(UserError) as error:
            download.fetch(entry, tmp_path)
        told(error, f"another process is fetching {tmp_path / 'x.pth'}; wait until it ends")
        assert "by hand" not in str(error.value)
    finally:
        go_on.set()
        first.join(20)
    assert server.ranges == [None, f"bytes={CUT}-"]
    assert results[0].path.read_bytes() == DATA
    assert os.listdir(tmp_path) == ["x.pth"]


def test_a_file_on_the_hub_comes_through_the_hubs_client(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    entry, folder = registry.named("sam_vit_b_hf"), tmp_path / "weights"
    folder.mkdir()
    whole = safetensors.numpy.save({"x": np.ones((300, 7), np.float32)})
    with fake_hub.running() as running:
        download_here = functools.partial(hub.download, endpoint=running.url)
        monkeypatch.setattr(hub, "download", download_here)
        repository, name = entry.hub
        running.private[repository], running.files[repository] = False, {name: whole[:-1]}
        assert "is not a complete safetensors file" in _failure(entry, folder)
        running.files[repository][name] = whole
        assert not _fetch(entry, folder, whole).was_there
        assert _fetch(entry, folder, whole).was_there
        (folder / entry.file).unlink()
        del running.files[repository][name]
        message = _failure(entry, folder)
        assert repository in message and name in message
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        assert "pip install 'prosam_jax[hub]'" in _failure(entry, folder)
    huggingface_hub.utils.close_session()
