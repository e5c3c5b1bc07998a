"""Prompt sets of others become JSONL with ids, from files and from the hub's client, against a local server."""

import gzip
import io
import json
import os
import subprocess
import sys

import pytest
import yaml

from finemoe.artifact.external.manifest import PromptColumns, read_manifest
from finemoe.artifact.external.prompt_sets import LONGEST, first_turn, prompts_of
from finemoe.artifact.external.store import Store
from finemoe.errors import FinemoeError
from finemoe.paths import ROOT
from finemoe.workloads import read_prompts
from tests.artifact.external.hub import REVISION, Hub, serving

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": " Hello? "}]
SHARED = [{"from": "gpt", "value": "Go on"}, {"from": "human", "value": "A question"}, {"from": "gpt", "value": "An answer"}]


@pytest.mark.parametrize(
    ("value", "turn"),
    [
        ("  text ", "text"),
        (["first", "second"], "first"),
        (CHAT, "Hello?"),
        (SHARED, "A question"),
        ([], ""),
        (None, ""),
        ([{"from": "gpt", "value": "alone"}], ""),
        ([{"role": "user", "content": None}], ""),
    ],
)
def test_the_first_turn_of_the_user(value, turn):
    assert first_turn(value) == turn


def test_rows_without_a_prompt_too_long_or_seen_before_are_left_out():
    texts = ["one", "", "x" * (LONGEST + 1), "two", "one", "x" * LONGEST]
    rows = [{"text": text, "key": 10 * number, "kind": "a"} for number, text in enumerate(texts)]
    found = list(prompts_of(rows, PromptColumns("text", "key", "kind"), "set"))
    assert [(row["id"], row["prompt"][:3], row["topic"]) for row in found] == [
        ("0", "one", "a"),
        ("30", "two", "a"),
        ("50", "xxx", "a"),
    ]
    assert [row["id"] for row in prompts_of(rows, PromptColumns("text"), "set")] == ["set-0", "set-3", "set-5"]


def test_a_missing_column_is_named():
    with pytest.raises(FinemoeError, match=r"set: row 1 has no column 'topic'; its columns are \['text'\]"):
        list(prompts_of([{"text": "one"}], PromptColumns("text", topic="topic"), "set"))


def manifest_of(tmp_path, **entries):
    """A list of external data with these prompt sets."""
    common = {"what": "a set", "licence": "Own", "used_by": "tests"}
    content = {
        "licences": {"Own": {"title": "Own terms", "url": "https://example.org/terms"}},
        "entries": {name: common | keys for name, keys in entries.items()},
    }
    path = tmp_path / "external.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", ["set.json", "set.jsonl", "set.jsonl.gz"])
def test_published_files_of_every_form(tmp_path, name):
    rows = [{"id": f"c{number}", "conversations": [{"from": "human", "value": f"Question {number}?"}]} for number in range(20)]
    text = json.dumps(rows) if name == "set.json" else "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    columns = {"prompt": "conversations", "id": "id", "rows": 12}
    keys = {"file": name, "url": "https://example.org/set", "prompts": columns}
    entry = read_manifest(manifest_of(tmp_path, mine=keys))["mine"]
    store = Store(tmp_path)
    assert store.state(entry) == "to convert"
    assert store.convert(entry) == "12 prompts"
    assert store.state(entry) == "here"
    prompts = read_prompts(str(store.result(entry)))
    assert [row["id"] for row in prompts] == [f"c{number}" for number in range(12)]
    assert [row["prompt"] for row in prompts] == [f"Question {number}?" for number in range(12)]


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "set.jsonl").write_text('{"text": "on')
    keys = {"file": "set.jsonl", "url": "https://example.org/set", "prompts": {"prompt": "text"}}
    entry = read_manifest(manifest_of(tmp_path, mine=keys))["mine"]
    with pytest.raises(FinemoeError, match=r"set\.jsonl: mine cannot be read .*; fetch it again") as caught:
        Store(tmp_path).convert(entry)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("converted/*"))


def parquet(number: int) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    turn = [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": "An answer."}]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{"conversation_id": f"c{number}", "conversation": turn, "language": "English"}]), file)
    return file.getvalue()


def test_the_hubs_client_reads_the_pinned_revision_and_a_login_is_asked_for_in_one_line(tmp_path):
    files = {f"data/train-{number:05d}-of-00003.parquet": parquet(number) for number in range(3)}
    columns = {"prompt": "conversation", "id": "conversation_id", "topic": "language", "rows": 2}
    common = {"revision": REVISION, "split": "train", "prompts": columns}
    entries = {"open": common | {"hub": "some/chats"}, "closed": common | {"hub": "some/gated-chats", "gated": True}}
    manifest = manifest_of(tmp_path, **entries)
    with serving(Hub({"some/chats": files, "some/gated-chats": files}, gated=("some/gated-chats",))) as hub:
        command = [sys.executable, "-m", "finemoe.artifact.external", "convert", "open", "closed", "--accept", "Own"]
        environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        options = ["--folder", str(tmp_path / "external"), "--manifest", str(manifest)]
        done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert set(hub.log) == {REVISION}
    assert done.returncode == 1
    assert done.stdout == f"open: {tmp_path}/external/converted/open.jsonl (2 prompts)\n"
    assert done.stderr.splitlines()[-1] == (
        "finemoe: closed: some/gated-chats asks for a login: agree to its terms at https://example.org/terms, then run"
        " `hf auth login` or set HF_TOKEN"
    )
    assert "Traceback" not in done.stderr
    lines = (tmp_path / "external" / "converted" / "open.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": f"c{number}", "prompt": f"Question {number}?", "topic": "English"} for number in range(2)
    ]


def test_without_the_hub_one_line(tmp_path):
    keys = {"hub": "some/chats", "revision": REVISION, "split": "train", "prompts": {"prompt": "text"}}
    entry = read_manifest(manifest_of(tmp_path, mine=keys))["mine"]
    with pytest.raises(FinemoeError, match="mine: some/chats cannot be fetched from the hub: ") as caught:
        Store(tmp_path).convert(entry)  # the tests forbid the hub
    assert "\n" not in str(caught.value)
