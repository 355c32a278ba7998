import dataclasses
import hashlib
import os
import signal
import threading
import time

import pytest
from file_server import (
    CUT,
    DATA,
    DIGEST,
    OTHER,
    chunked,
    cut,
    elsewhere,
    endless,
    failure,
    fetch,
    heedless_of_if_range,
    published,
    ranges,
    reset,
    serving,
    status,
    without_range,
    wrong_range,
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


def test_a_file_cut_short_goes_on_where_it_ended(server, entry, tmp_path, capsys):
    server.answers += [cut(1_000_000), cut(2_000_000)]
    fetch(entry, tmp_path)
    assert ranges(server) == [None, "bytes=1000000-", "bytes=2000000-"]
    assert capsys.readouterr().err == (
        "1,000,000 of 3,000,017 bytes came; trying again in 0 s\n"
        "2,000,000 of 3,000,017 bytes came; trying again in 0 s\n"
    )


def test_progress_earns_new_attempts(server, entry, tmp_path):
    ends = range(300_000, 3_000_000, 300_000)
    assert len(ends) > 2 * len(download.WAITS)
    server.answers += [cut(end) for end in ends]
    fetch(entry, tmp_path)
    assert ranges(server) == [None, *(f"bytes={end}-" for end in ends)]


def test_a_reset_connection_goes_on(server, entry, tmp_path):
    server.answers += [reset(CUT), reset(2 * CUT)]
    fetch(entry, tmp_path)
    assert len(server.requests) == 3
    starts = [int(asked[6:-1]) for asked in ranges(server)[1:]]
    assert 0 < starts[0] <= CUT < starts[1] <= 2 * CUT


def test_a_connection_that_falls_silent_goes_on(server, entry, tmp_path, monkeypatch):
    hung_up = threading.Event()

    def silent(handler):
        cut()(handler)
        handler.wfile.flush()
        hung_up.wait(20)

    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    server.answers.append(silent)
    fetch(entry, tmp_path)
    hung_up.set()
    assert ranges(server) == [None, f"bytes={CUT}-"]


def test_a_second_call_goes_on_from_the_first(server, entry, tmp_path):
    server.answers += [cut(), *[status(503)] * 3]
    message = failure(entry, tmp_path, OSError)
    assert message == (
        f"{server.url} fails again and again (the server answers 503 Service Unavailable); "
        f"the same command goes on from byte {CUT:,}"
    )
    assert len(server.requests) == 1 + 3
    assert os.listdir(tmp_path) == ["x.pth.part"]
    assert (tmp_path / "x.pth.part").read_bytes() == DATA[:CUT]
    fetch(entry, tmp_path)
    assert server.requests[4:] == [(f"bytes={CUT}-", None)]


def test_a_network_lost_on_the_way_keeps_the_part(server, entry, tmp_path, monkeypatch):
    server.answers.append(cut())
    opened = download.urllib.request.urlopen

    def once(*args, **kwargs):
        monkeypatch.setattr(download.urllib.request, "urlopen", lost)
        return opened(*args, **kwargs)

    def lost(*_, **__):
        raise download.urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr(download.urllib.request, "urlopen", once)
    message = failure(entry, tmp_path, OSError)
    assert f"(Network is unreachable); the same command goes on from byte {CUT:,}" in message
    assert (tmp_path / "x.pth.part").read_bytes() == DATA[:CUT]


def test_a_server_that_ignores_ranges_is_taken_from_the_start(server, entry, tmp_path):
    server.answers += [cut(), without_range]
    fetch(entry, tmp_path)
    assert ranges(server) == [None, f"bytes={CUT}-"]


def test_a_wrong_content_range_is_not_appended(server, entry, tmp_path, capsys):
    server.answers += [cut(), wrong_range]
    fetch(entry, tmp_path)
    assert ranges(server) == [None, f"bytes={CUT}-", None]
    assert f"the server cannot go on from byte {CUT:,}: from the start" in capsys.readouterr().err


def test_a_redirection_keeps_the_range(server, entry, tmp_path):
    server.answers += [elsewhere, cut(), elsewhere]
    fetch(entry, tmp_path)
    assert ranges(server) == [None, None, f"bytes={CUT}-", f"bytes={CUT}-"]


@pytest.mark.parametrize("data", [DATA[:CUT], DATA + b"more"], ids=["short", "long"])
def test_without_any_announcement_the_published_size_tells_the_end(server, entry, tmp_path, data):
    server.answers.append(endless(data))
    fetch(entry, tmp_path)
    assert ranges(server) == [None, f"bytes={CUT}-" if len(data) == CUT else None]


def test_chunks_without_a_last_one_go_on(server, entry, tmp_path):
    server.answers.append(chunked)
    fetch(dataclasses.replace(entry, size=None), tmp_path)
    assert ranges(server) == [None, f"bytes={CUT}-"]


def test_a_wrong_part_is_thrown_away_and_fetched_once_from_the_start(
    server, entry, tmp_path, capsys
):
    (tmp_path / "x.pth.part").write_bytes(OTHER[:CUT])
    fetch(entry, tmp_path)
    assert ranges(server) == [f"bytes={CUT}-", None]
    assert "what was resumed makes a wrong file" in capsys.readouterr().err
    (tmp_path / "x.pth").unlink()
    (tmp_path / "x.pth.part").write_bytes(DATA[:CUT])
    server.data = OTHER
    message = failure(entry, tmp_path)
    assert f"has sha256 {hashlib.sha256(OTHER).hexdigest()}" in message
    assert len(server.requests) == 4
    assert not os.listdir(tmp_path)


def test_a_file_changed_between_attempts_ends_right(server, entry, tmp_path):
    server.answers.append(cut(data=OTHER))
    fetch(entry, tmp_path)
    assert ranges(server) == [None, f"bytes={CUT}-", None]


def test_a_complete_part_needs_no_request(server, entry, tmp_path):
    (tmp_path / "x.pth.part").write_bytes(DATA)
    fetch(entry, tmp_path)
    assert server.requests == []


def test_too_long_a_part_is_begun_anew(server, entry, tmp_path):
    (tmp_path / "x.pth.part").write_bytes(DATA + b"more")
    fetch(entry, tmp_path)
    assert ranges(server) == [None]


def test_a_complete_part_of_unknown_size_is_seen_by_the_server(server, entry, tmp_path):
    (tmp_path / "x.pth.part").write_bytes(DATA)
    fetch(dataclasses.replace(entry, size=None), tmp_path)
    assert ranges(server) == ["bytes=3000017-"]
    (tmp_path / "x.pth").unlink()
    (tmp_path / "x.pth.part").write_bytes(DATA + b"more")
    fetch(dataclasses.replace(entry, size=None), tmp_path)
    assert ranges(server)[1:] == ["bytes=3000021-", None]


def test_without_a_checksum_the_etag_is_kept_and_sent(server, unknown, tmp_path):
    server.answers += [cut(), *[status(503)] * 3]
    failure(unknown, tmp_path, OSError)
    assert sorted(os.listdir(tmp_path)) == ["x.pth.part", "x.pth.part.etag"]
    assert (tmp_path / "x.pth.part.etag").read_text() == '"one"'
    fetched = fetch(unknown, tmp_path)
    assert fetched.check.startswith(f"sha256 {DIGEST}; none is published to compare it with")
    assert server.requests == [(None, None), *[(f"bytes={CUT}-", '"one"')] * 4]


def test_without_a_checksum_a_changed_file_is_begun_anew(server, unknown, tmp_path):
    server.answers += [cut(), *[status(503)] * 3]
    failure(unknown, tmp_path, OSError)
    server.data, server.etag = OTHER, '"two"'
    fetch(unknown, tmp_path, OTHER)
    assert server.requests[4:] == [(f"bytes={CUT}-", '"one"')]


def test_a_server_heedless_of_if_range_is_found_out_by_its_etag(server, unknown, tmp_path):
    server.answers += [cut(), *[status(503)] * 3, heedless_of_if_range]
    failure(unknown, tmp_path, OSError)
    server.data, server.etag = OTHER, '"two"'
    fetch(unknown, tmp_path, OTHER)
    assert ranges(server)[4:] == [f"bytes={CUT}-", None]


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_checksum_and_strong_etag_it_is_begun_anew(server, unknown, tmp_path, etag):
    server.etag = etag
    server.answers += [cut(), *[status(503)] * 3]
    assert failure(unknown, tmp_path, OSError).endswith("the same command goes on from byte 0")
    assert os.listdir(tmp_path) == ["x.pth.part"]
    fetch(unknown, tmp_path)
    assert server.requests == [(None, None)] * 5


def test_an_etag_does_not_outlive_its_bytes(server, unknown, tmp_path):
    server.answers += [cut(), *[status(503)] * 3]
    failure(unknown, tmp_path, OSError)
    server.data, server.etag = OTHER, ""
    server.answers += [cut(), *[status(503)] * 3]
    failure(unknown, tmp_path, OSError)
    assert (tmp_path / "x.pth.part").read_bytes() == OTHER[:CUT]
    assert os.listdir(tmp_path) == ["x.pth.part"]


def test_an_interrupted_command_goes_on_when_run_again(
    server, entry, tmp_path, capsys, monkeypatch
):
    """Ctrl-C comes while the command waits for the rest; nothing here depends on a clock."""
    part, ended = tmp_path / "x.pth.part", threading.Event()
    waiting = threading.get_ident()

    def interrupting(handler):
        cut()(handler)
        handler.wfile.flush()
        while not ended.is_set() and part.stat().st_size < CUT - (1 << 16):
            time.sleep(0.01)
        if not ended.is_set():
            signal.pthread_kill(waiting, signal.SIGINT)
        ended.wait()

    server.answers.append(interrupting)
    unsized = dataclasses.replace(entry, size=None)
    monkeypatch.setattr(registry, "PUBLISHED", (unsized,))
    # Ignored where a shell runs tests with &.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = command.main(["fetch", entry.name, "--to", str(tmp_path)])
    finally:
        ended.set()
        signal.signal(signal.SIGINT, former)
    expected = "error: stopped; the same command goes on from what has arrived\n"
    assert (code, capsys.readouterr().err) == (1, expected)
    kept = part.stat().st_size
    assert part.read_bytes() == DATA[:kept]
    assert 0 < kept <= CUT
    fetch(unsized, tmp_path)
    assert ranges(server) == [None, f"bytes={kept}-"]
