"""A model by its name on the hub: downloaded once, whole, and the same answer as from its folder."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from finemoe.cli import app
from tests.published.checkpoints import FAMILIES
from tests.published.hub import serving

pytestmark = pytest.mark.timeout(300)


def test_a_name_is_downloaded_and_answers(folders, tmp_path):
    name, options = FAMILIES["gpt_oss"].name, ["-p", "Why?", "--max-new-tokens", "4", "--json"]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    with serving(name, folders["gpt_oss"]) as (url, asked):
        done = subprocess.run(
            [sys.executable, "-m", "finemoe", "run", "-m", name, *options],
            capture_output=True,
            text=True,
            env={**kept, "HF_HOME": str(tmp_path), "HF_ENDPOINT": url, "HF_TOKEN": "hf_none"},
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    by_folder = CliRunner().invoke(app, ["run", "-m", str(folders["gpt_oss"]), *options])
    assert json.loads(done.stdout)["text"] == json.loads(by_folder.stdout)["text"]
    fetched = [line.removeprefix("GET ") for line in asked if line.startswith("GET ")]
    assert set(FAMILIES["gpt_oss"].shards) <= set(fetched)
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= set(fetched)
    assert len(fetched) == len(set(fetched))  # nothing twice
