"""Files arrive whole and right or not at all: broken off, continued, wrong, refused, without space, against a local server."""

import errno
import fcntl
import gzip
import hashlib
import random
import shutil
from collections import namedtuple

import pytest

from finemoe.artifact.external import transfer
from finemoe.artifact.external.transfer import PART, WRONG, Source, download
from finemoe.errors import FinemoeError
from tests.artifact.external.server import Files, serving

PATH = "folder/data.bin"
BODY = random.Random(0).randbytes(1_000_003)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def server():
    with serving(Files({PATH: BODY})) as files:
        yield files


@pytest.fixture
def path(tmp_path):
    return tmp_path / "external" / "data.bin"


def source(server, **changes) -> Source:
    return Source(**({"name": "data", "url": f"{server.url}/{PATH}", "bytes": len(BODY), "sha256": SHA256} | changes))


def fetch(source, path) -> list[str]:
    """The lines said on the way."""
    said: list[str] = []
    assert download(source, path, said.append, longest_wait_s=0.0) == SHA256
    assert path.read_bytes() == BODY
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    return said


def refused(source, path) -> str:
    """The one line of a fetch that fails."""
    with pytest.raises(FinemoeError) as caught:
        download(source, path, lambda line: None, longest_wait_s=0.0)
    assert "\n" not in str(caught.value)
    assert not path.exists()
    return str(caught.value)


def part_of(path):
    return path.with_name(path.name + PART)


def test_a_whole_file(server, path):
    assert fetch(source(server), path) == []
    assert server.log == [(f"/{PATH}", "", 200)]


def test_a_file_without_a_known_size_and_checksum(server, path):
    assert fetch(source(server, bytes=0, sha256=""), path) == []


def test_a_broken_connection_is_continued_at_the_byte_where_it_broke(server, path):
    server.breaks[PATH] = [300_000, 200_000]
    said = fetch(source(server), path)
    first, second, third = server.ranges
    kept = [int(wanted.removeprefix("bytes=").removesuffix("-")) for wanted in (second, third)]
    assert first == ""
    assert 200_000 < kept[0] <= 300_000
    assert kept[0] + 100_000 < kept[1] <= kept[0] + 200_000
    assert server.statuses == [200, 206, 206]
    assert said == [f"data: the connection broke off; attempt {number} in 0 s" for number in (2, 3)]


def test_a_later_call_asks_only_for_the_missing_bytes(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY[:400_000])
    fetch(source(server), path)
    assert server.log == [(f"/{PATH}", "bytes=400000-", 206)]


def test_a_part_that_is_whole_is_not_asked_for_again(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(BODY)
    fetch(source(server), path)
    assert server.log == []


def test_a_connection_that_never_gets_far_is_given_up_and_what_came_is_kept(server, path):
    server.breaks[PATH] = [300_000, *[0] * 20]
    line = refused(source(server), path)
    assert "the connection broke off, 5 times; check the network" in line
    assert "are kept as data.bin.part, and the next fetch continues" in line
    assert len(server.log) == 1 + 5  # the first brought something new
    server.breaks.clear()
    fetch(source(server), path)
    assert server.statuses[-1] == 206


def test_a_server_without_ranges_begins_again(server, path):
    server.has_ranges = False
    server.breaks[PATH] = [300_000]
    fetch(source(server), path)
    assert server.ranges[1].startswith("bytes=")
    assert server.statuses == [200, 200]


def test_a_partial_file_that_no_checksum_could_prove_is_not_continued(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(b"something else")
    fetch(source(server, sha256=""), path)
    assert server.ranges == [""]


@pytest.mark.parametrize("size", [len(BODY) + 5, len(BODY) + 1])
def test_a_partial_file_that_is_too_long_is_discarded(server, path, size):
    path.parent.mkdir()
    part_of(path).write_bytes(b"x" * size)
    fetch(source(server), path)
    assert server.ranges == [""]
    path.unlink()
    part_of(path).write_bytes(b"x" * size)
    fetch(source(server, bytes=0), path)  # only the server knows that it is too long
    assert server.statuses[1:] == [416, 200]


def test_a_partial_file_with_other_bytes_is_found_by_the_checksum(server, path):
    path.parent.mkdir()
    part_of(path).write_bytes(b"x" * 400_000)
    line = refused(source(server), path)
    assert f"but data/external.yaml states {SHA256}; kept as" in line
    assert path.with_name(path.name + WRONG).stat().st_size == len(BODY)
    fetch(source(server), path)  # whole, and what was set aside is gone


def test_a_wrong_checksum_names_both_and_the_file_is_set_aside(server, path):
    line = refused(source(server, sha256="0" * 64), path)
    assert f"sha256 is {SHA256}, but data/external.yaml states {'0' * 64}" in line
    assert f"kept as {path}{WRONG} and not used" in line
    assert [one.name for one in path.parent.iterdir()] == [path.name + WRONG]


def test_a_wrong_size_is_known_before_anything_is_fetched(server, path):
    line = refused(source(server, bytes=5), path)
    assert f"has {len(BODY)} bytes, but data/external.yaml states 5; nothing was fetched" in line
    assert list(path.parent.iterdir()) == []


def test_a_compressed_answer_is_the_file_itself(server, path):
    server.encodes = True
    fetch(source(server), path)
    path.unlink()
    part_of(path).write_bytes(BODY[:400_000])
    fetch(source(server), path)
    assert server.statuses == [200, 200]


@pytest.mark.parametrize(("status", "advice"), [(404, "the address or the mirror is wrong"), (403, "asks for a login")])
def test_a_refusal_is_one_line_and_not_repeated(server, path, status, advice):
    server.busy = [status]
    line = refused(source(server), path)
    assert f"the server answers {status}" in line
    assert advice in line
    assert len(server.log) == 1
    assert list(path.parent.iterdir()) == []


def test_a_busy_server_is_asked_again(server, path):
    server.busy = [503, 429, 500]
    said = fetch(source(server), path)
    assert server.statuses == [503, 429, 500, 200]
    assert said[0] == "data: the server answers 503 Service Unavailable; attempt 2 in 0 s"


def test_a_redirection_is_followed_and_keeps_the_range(server, path):
    server.moved["old"] = f"/{PATH}"
    path.parent.mkdir()
    part_of(path).write_bytes(BODY[:400_000])
    fetch(source(server, url=f"{server.url}/old"), path)
    assert server.statuses == [302, 206]
    assert server.ranges == ["bytes=400000-"] * 2


def test_a_server_that_is_not_there(path):
    with serving(Files({})) as gone:
        pass
    line = refused(source(gone), path)
    assert "the server cannot be reached, 5 times; check the network" in line
    assert list(path.parent.iterdir()) == []


def test_too_little_space_is_known_before_anything_is_fetched(server, path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 500_000))
    line = refused(source(server), path)
    assert f"data: 976.6 KiB are missing, but {path.parent} has 488.3 KiB free; nothing was fetched" in line
    assert server.log == []
    refused(source(server, bytes=0), path)  # here the server's answer states the size
    assert server.statuses == [200]
    part_of(path).write_bytes(BODY[:600_000])
    fetch(source(server), path)  # what is missing fits


def test_space_that_ends_meanwhile_keeps_what_came(server, path, monkeypatch):
    server.breaks[PATH] = [300_000]
    real = transfer._check_answer

    def full(source, answer, file, present):
        real(source, answer, file, present)
        if present:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_check_answer", full)
    line = refused(source(server), path)
    assert f"data: cannot be written to {path.parent} (No space left on device); free some space" in line
    assert "are kept as data.bin.part, and the next fetch continues" in line
    monkeypatch.undo()
    fetch(source(server), path)
    assert server.statuses[-1] == 206


def test_a_folder_that_cannot_be_written(server, path):
    path.parent.write_text("a file")
    line = refused(source(server), path / "below")
    assert "cannot be written" in line


def test_two_processes_do_not_fill_the_same_file(server, path):
    path.parent.mkdir()
    with part_of(path).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is fetching" in refused(source(server), path)
    fetch(source(server), path)


def test_a_file_that_was_just_renamed_by_another_process_is_left_alone(server, path, monkeypatch):
    """Another process ends after this one has opened the partial file, and before it has locked it."""
    path.parent.mkdir()
    lock, arrived = fcntl.flock, []

    def late(file, kind):
        if not arrived:
            arrived.append(part_of(path).rename(path))
            path.write_bytes(b"what the other process fetched")
        lock(file, kind)

    monkeypatch.setattr(fcntl, "flock", late)
    server.busy = [404]
    with pytest.raises(FinemoeError, match="the server answers 404"):
        download(source(server, sha256=""), path, lambda line: None, longest_wait_s=0.0)
    assert path.read_bytes() == b"what the other process fetched"


def test_a_body_without_a_length_that_breaks_off_is_continued(server, path):
    server.states_length = False
    server.breaks[PATH] = [300_000]
    assert fetch(source(server), path) == ["data: the connection broke off; attempt 2 in 0 s"]
    assert server.ranges == ["", "bytes=300000-"]


def test_a_body_without_an_end_is_not_read_for_ever(server, path):
    server.states_length = False
    server.content[PATH] = BODY * 5
    assert "its size is" in refused(source(server), path)
    assert path.with_name(path.name + WRONG).stat().st_size <= len(BODY) + (1 << 16)


def test_a_packed_file_that_the_server_calls_a_compressed_body_stays_packed(server, path):
    body = gzip.compress(BODY)
    server.content[PATH], server.calls_packed = body, True
    packed = source(server, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    server.breaks[PATH] = [300_000]
    download(packed, path, lambda line: None, longest_wait_s=0.0)
    assert path.read_bytes() == body


@pytest.mark.parametrize("url", ["http://", "http:///data.bin", "http://[::1/data.bin", "ftp://localhost/data.bin"])
def test_what_is_no_address_is_not_asked_again(path, url):
    said = []
    with pytest.raises(FinemoeError, match="the address or the mirror is wrong") as caught:
        download(Source("data", url, len(BODY), SHA256), path, said.append, longest_wait_s=0.0)
    assert "\n" not in str(caught.value)
    assert said == []


def test_an_endless_redirection_is_not_asked_again(server, path):
    server.moved["old"] = "/old"
    assert "Exceeded 30 redirects; the address or the mirror is wrong" in refused(source(server, url=f"{server.url}/old"), path)
