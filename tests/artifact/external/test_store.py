"""The folder of external data: what is fetched into it, checked, refused and converted, against a local server."""

import gzip
import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from typer.testing import CliRunner

from finemoe.artifact.external.__main__ import app
from finemoe.artifact.external.manifest import entry_named, read_manifest, require_accepted
from finemoe.artifact.external.store import MIRROR, Store, mirror_of
from finemoe.errors import FinemoeError
from finemoe.importers.gpt_oss import load_gpt_oss
from finemoe.importers.route_trace import load_route_trace
from finemoe.traces import RoutingTrace
from tests.artifact.external.server import Files, serving
from tests.artifact.external.test_prompt_sets import manifest_of

ENTRIES = read_manifest()
CSV = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
SHA256 = hashlib.sha256(CSV).hexdigest()
ARRIVALS = {"file": "arrivals/a.csv", "url": "https://example.org/a.csv", "bytes": len(CSV), "sha256": SHA256}


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def server():
    with serving(Files({"arrivals/a.csv": CSV})) as files:
        yield files


def test_the_shipped_list_states_revisions_and_checksums():
    for entry in ENTRIES.values():
        assert entry.url.startswith("https://") or not entry.url
        assert entry.sha256 == "" or (len(entry.sha256) == 64 and entry.bytes > 0)
        assert "/main/" not in entry.url
        assert "/master/" not in entry.url
        assert entry.sha256 or entry.hub or entry.name == "gpt-oss-20b"  # of which the note says why
        assert not entry.hub or len(entry.revision) == 40
    files = [entry.file for entry in ENTRIES.values() if entry.file]
    assert len(files) == len(set(files))


def test_mistakes_in_a_list_are_one_line(tmp_path):
    for keys, message in [
        ({"licence": "Mine"}, "mine has no licence of those listed: Own"),
        ({"fiel": "a"}, "mine has an unknown field 'fiel'; did you mean 'file'?"),
        ({"file": "a"}, "mine needs a file with its url or source, or a hub id"),
    ]:
        with pytest.raises(FinemoeError, match=message.replace("?", r"\?")) as caught:
            read_manifest(manifest_of(tmp_path, mine=keys))
        assert "\n" not in str(caught.value)
    (tmp_path / "open.yaml").write_text("entries: [")
    with pytest.raises(FinemoeError, match=r"open\.yaml: not a list of external data"):
        read_manifest(tmp_path / "open.yaml")
    for text, key in [("", "licences"), ("licences: {}\nentries: [a]", "entries"), ("licences: {a: 1}", "licences")]:
        (tmp_path / "open.yaml").write_text(text)
        with pytest.raises(FinemoeError, match=f"`{key}` is not a table of names with their fields"):
            read_manifest(tmp_path / "open.yaml")


@pytest.mark.parametrize(
    ("name", "file"), [("mine", "../a.csv"), ("mine", "/tmp/a.csv"), ("../mine", "a.csv"), ("mine", "a/../../b")]
)
def test_nothing_is_written_outside_the_folder(tmp_path, name, file):
    with pytest.raises(FinemoeError, match="would be written outside the folder of external data"):
        read_manifest(manifest_of(tmp_path, **{name: ARRIVALS | {"file": file}}))


def test_nothing_is_fetched_before_its_licence_is_accepted(server, tmp_path):
    options = ["--folder", str(tmp_path), "--mirror", server.url, "--manifest", str(manifest_of(tmp_path, mine=ARRIVALS))]
    refused = run("fetch", "mine", *options)
    assert isinstance(refused.exception, FinemoeError)
    assert str(refused.exception) == (
        "nothing was fetched: not accepted: Own (https://example.org/terms) of mine. Read the terms, then accept them with"
        " --accept Own"
    )
    assert server.log == []
    assert "did you mean 'Own'?" in str(run("fetch", "mine", *options, "--accept", "own").exception)
    done = run("fetch", "mine", *options, "--accept", "Own")
    assert done.output == f"mine: {tmp_path}/arrivals/a.csv ({len(CSV)} B, Own)\n"
    assert (tmp_path / "arrivals" / "a.csv").read_bytes() == CSV
    assert run("convert", "mine", *options[:2], *options[4:]).output == f"mine: {tmp_path}/arrivals/a.csv, as published\n"


def test_what_is_here_is_checked_and_not_fetched_again(server, tmp_path):
    entry = read_manifest(manifest_of(tmp_path, mine=ARRIVALS))["mine"]
    store = Store(tmp_path, server.url + "/")
    path = store.fetch(entry)
    store.fetch(entry)
    assert len(server.log) == 1
    path.write_bytes(CSV + b"2023")
    for action in (store.fetch, store.convert):
        with pytest.raises(FinemoeError, match=r"mine: sha256 of .*a\.csv is .* but data/external\.yaml states .* not used"):
            action(entry)


def test_the_first_fetch_decides_where_no_checksum_is_known(server, tmp_path):
    keys = {"file": "arrivals/a.csv", "url": "https://example.org/a.csv"}
    entry = read_manifest(manifest_of(tmp_path, mine=keys))["mine"]
    store = Store(tmp_path, server.url)
    path = store.fetch(entry)
    lock = path.with_name("a.csv.sha256")
    assert lock.read_text() == f"{SHA256}  a.csv\n"  # as sha256sum --check reads it
    path.unlink()
    store.fetch(entry)
    path.unlink()
    server.content["arrivals/a.csv"] = CSV[:-1]
    with pytest.raises(FinemoeError, match=r"but a\.csv\.sha256 states "):
        store.fetch(entry)
    assert not path.exists()
    lock.write_text("")
    with pytest.raises(FinemoeError, match=r"a\.csv\.sha256: has no sha256; remove it if you trust the next fetch"):
        store.fetch(entry)


def test_a_file_that_no_publisher_has_needs_a_mirror(server, tmp_path):
    keys = ARRIVALS | {"url": "", "source": "a repository"}
    entry = read_manifest(manifest_of(tmp_path, mine=keys))["mine"]
    with pytest.raises(FinemoeError, match="mine: no publisher has this file, which is derived from a repository; set a mirror"):
        Store(tmp_path).fetch(entry)
    assert Store(tmp_path, server.url).fetch(entry).read_bytes() == CSV


def test_the_mirror_is_an_address(tmp_path, monkeypatch):
    with pytest.raises(FinemoeError, match="mirror 'localhost' is not an address; write http://HOST"):
        Store(tmp_path, "localhost")
    monkeypatch.setenv(MIRROR, "http://one")
    assert (mirror_of(), mirror_of("http://two")) == ("http://one", "http://two")


def test_an_unknown_name_and_what_is_not_fetched_are_one_line(tmp_path):
    assert "no external data 'lmsis'; did you mean 'lmsys'?" in str(run("fetch", "lmsis").exception)
    line = str(run("convert", "gsm8k", "--folder", str(tmp_path)).exception)
    assert line.endswith("not fetched yet; run `python -m finemoe.artifact.external fetch gsm8k`")


def test_the_summary_without_an_accepted_licence_shows_them_and_fails(tmp_path):
    refused = run("summary", "--folder", str(tmp_path))
    assert str(refused.exception).startswith("no licence is accepted, so nothing was fetched; accept those you agree to with")
    for entry in ENTRIES.values():
        assert entry.licence.url in refused.output
    done = run("summary", "--folder", str(tmp_path), "--accept", "MIT")
    assert done.output.startswith(f"0 of {len(ENTRIES)} entries are in {tmp_path}: none\n")
    assert "gsm8k (not fetched)" in done.output
    assert "lmsys (licence LMSYS-Chat-1M is not accepted)" in done.output
    assert "mixtral-mmlu-questions (only from a mirror)" in done.output


def test_the_list_fits_a_terminal_and_has_every_entry(monkeypatch, tmp_path):
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = run("list", "--folder", str(tmp_path)).output.splitlines()
        assert max(len(line) for line in lines) <= columns
        assert [line.split()[0] for line in lines if not line.startswith(" ")] == ["name", *ENTRIES]


def example(tokens: int, seed: int) -> dict:
    """A request in the publisher's form of gpt-oss-20b."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            f"token_{5 + token}": {
                f"layer_{layer}": {
                    "selected_experts": rng.permutation(32)[:4].tolist(),
                    "selected_probs": sorted(rng.dirichlet(np.ones(4)).tolist(), reverse=True),
                }
                for layer in range(3)
            }
        }
        for token in range(tokens)
    ]
    return {"row_index": seed, "dataset": "a set", "category": "some", "router_data": rows}


def test_the_publishers_archive_becomes_the_trace_that_its_files_give(tmp_path):
    texts = {f"data/{name}/True_True_examples.json": json.dumps(example(4, seed)) for seed, name in enumerate("abc")}
    folder, archive = tmp_path / "files", tmp_path / ENTRIES["gpt-oss-20b"].file
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        for name, text in {**texts, "README.md": "text", "data/a/True_True.json": "{}", "../up_examples.json": "{}"}.items():
            member = tarfile.TarInfo(f"repository/{name}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    store = Store(tmp_path)
    assert store.convert(ENTRIES["gpt-oss-20b"]) == "3 requests, 12 tokens"
    made, expected = RoutingTrace.load(store.result(ENTRIES["gpt-oss-20b"])), load_gpt_oss(folder)
    np.testing.assert_array_equal(made.expert_ids, expected.expert_ids)
    np.testing.assert_array_equal(made.expert_probs, expected.expert_probs)
    assert (made.request_ids, made.splits) == (expected.request_ids, expected.splits)
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]  # the unpacked files are gone

    whole = archive.read_bytes()
    changed = bytearray(whole)
    changed[-6] ^= 1  # of the checksum
    for damaged in (whole[:2000], bytes(changed), linked_to_nothing()):
        archive.write_bytes(damaged)
        with pytest.raises(FinemoeError, match="damaged, or not an archive") as caught:
            store.convert(ENTRIES["gpt-oss-20b"])
        assert "\n" not in str(caught.value)


def linked_to_nothing() -> bytes:
    """An archive whose only file is a link to one that it does not have."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as packed:
        member = tarfile.TarInfo("repository/a_examples.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        packed.addfile(member)
    return content.getvalue()


def test_published_samples_arrive_and_become_what_the_pipeline_reads(shared_data, tmp_path):
    """Everything of the list that the samples have in the publisher's form, from a local server."""
    contents = {
        entry.file: (shared_data / entry.file).read_bytes() for entry in ENTRIES.values() if (shared_data / entry.file).is_file()
    }
    gemma = ENTRIES["gemma-4-26b"]
    contents[gemma.file] = gzip.decompress((shared_data / "routing" / "bigmoe" / "gemma-4-26b.route.csv.gz").read_bytes())
    entries = [entry for entry in ENTRIES.values() if entry.file in contents]
    assert len(entries) >= 8
    require_accepted(entries, ["Apache-2.0", "CC-BY-4.0", "MIT"], " ".join)
    with serving(Files(contents)) as server:
        store = Store(tmp_path, server.url)
        for entry in entries:
            assert store.fetch(entry, say=pytest.fail).read_bytes() == contents[entry.file]
    assert store.convert(gemma) == "1 requests, 157 tokens"
    expected = load_route_trace(shared_data / "routing" / "bigmoe" / "gemma-4-26b.route.csv.gz")
    np.testing.assert_array_equal(RoutingTrace.load(store.result(gemma)).expert_ids, expected.expert_ids)
    counts = {"arena-hard": 471, "mt-bench": 78, "gsm8k": 1319, "humaneval": 164}
    for name, count in counts.items():
        assert store.convert(entry_named(name, ENTRIES)) == f"{count:,} prompts"
