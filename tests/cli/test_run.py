"""`finemoe run`: where the prompt comes from, Ctrl-C with counters, the warm-up profile, and one line for each mistake."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import finemoe
from finemoe.cli import app
from finemoe.errors import FinemoeError
from tests.packed.gguf_files import Type, qwen3moe
from tests.published.checkpoints import write_checkpoint

pytestmark = pytest.mark.timeout(300)

PROMPT = "User: Why is the sea salty?\nAssistant:"


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "qwen3"
    write_checkpoint("qwen3", folder, 2)
    return str(folder)


def run(*arguments: str, text: str | None = None):
    return CliRunner().invoke(app, ["run", *arguments], input=text)


def told(*arguments: str, text: str | None = None) -> dict:
    done = run(*arguments, text=text)
    assert done.exit_code in (0, 130), done.exception
    return json.loads(done.stdout)


def refusal(*arguments: str, text: str | None = None) -> str:
    done = run(*arguments, text=text)
    assert isinstance(done.exception, FinemoeError), done.output
    assert "\n" not in str(done.exception)
    return str(done.exception)


def test_a_prompt_comes_from_a_file_or_standard_input_too(qwen3, tmp_path):
    (tmp_path / "prompt.txt").write_text(f"{PROMPT}\n")
    short = ["-m", qwen3, "--raw", "--max-new-tokens", "4", "--json"]
    texts = {
        told(*short, "-p", PROMPT)["text"],
        told(*short, "-p", "-", text=f"{PROMPT}\n")["text"],
        told(*short, "--prompt-file", str(tmp_path / "prompt.txt"))["text"],
    }
    assert len(texts) == 1
    assert texts.pop().startswith(PROMPT)


def test_a_chat_with_a_model_without_a_template_has_lines_that_start_with_their_role():
    of_miniature = ["-m", "mixtral-mini", "--max-new-tokens", "6"]
    done = run(*of_miniature, "--chat", text="Why is the sea salty?\n")
    assert done.exit_code == 0, done.exception
    assert "this model has no chat template; a message becomes a line" in done.stderr
    answer = told(*of_miniature, "-p", PROMPT, "--json")["text"].removeprefix(PROMPT)
    assert answer.strip() in done.stdout


def test_the_first_interrupt_ends_the_text_at_the_next_token_and_reports(qwen3, tmp_path, monkeypatch):
    """Counters, JSON and the profile are there. `generate` asks before it hands out a token, so that one more comes."""
    from finemoe.cli import token_stream

    def put(stream, value):
        original(stream, value)
        if len(stream.tokens) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    original = token_stream.TokenStream.put
    monkeypatch.setattr(token_stream.TokenStream, "put", put)
    arguments = ["-m", qwen3, "-p", "Why?", "--max-new-tokens", "40", "--profile", str(tmp_path / "a.profile")]
    done = run(*arguments)
    assert done.exit_code == 130
    assert "4 tokens, stopped by Ctrl-C" in done.stdout
    assert "hit rate" in done.stdout
    assert (tmp_path / "a.profile").is_file()
    found = told(*arguments, "--json")
    assert (found["interrupted"], found["new_tokens"], found["ended_by"]) == (True, 4, "interrupted")
    assert found["report"]["accesses"] > 0


def test_a_second_interrupt_ends_at_once(qwen3, monkeypatch):
    from finemoe.cli import token_stream

    def put(stream, value):
        original(stream, value)
        if len(stream.tokens) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    original = token_stream.TokenStream.put
    monkeypatch.setattr(token_stream.TokenStream, "put", put)
    done = run("-m", qwen3, "-p", "Why?", "--max-new-tokens", "40")
    assert done.exit_code == 130
    assert "hit rate" not in done.stdout
    assert "interrupted; after 2 of at most 40 tokens" in done.stderr


def test_a_profile_is_read_written_and_of_one_model(qwen3, tmp_path):
    profile = str(tmp_path / "a.profile")
    arguments = ["-m", qwen3, "-p", "Why is the sea salty?", "--max-new-tokens", "8", "--expert-memory", "0.5"]
    runs = [run(*arguments, "--profile", profile) for _ in range(2)]
    assert "(new, written)" in runs[0].stdout
    assert "(read, and written)" in runs[1].stdout
    warm, cold = told(*arguments, "--profile", profile, "--json"), told(*arguments, "--json")
    assert warm["text"] == cold["text"]
    assert warm["report"]["hits"] > cold["report"]["hits"]
    assert warm["report"]["demand_bytes"] < cold["report"]["demand_bytes"]
    write_checkpoint("olmoe", tmp_path / "other", 1)
    line = refusal("-m", str(tmp_path / "other"), "-p", "x", "--profile", profile)
    assert line.startswith(f"{profile}: this profile is of 'Qwen3MoeForCausalLM-")
    assert line.endswith("name another file, or remove this one to start afresh")
    (tmp_path / "a.profile").write_bytes((tmp_path / "a.profile").read_bytes()[:-5])
    assert "truncated or not a warm-up-profile file" in refusal(*arguments, "--profile", profile)


def test_a_disk_without_room_for_the_profile_costs_no_counters(qwen3, tmp_path, monkeypatch):
    profile = tmp_path / "a.profile"

    def save(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(profile))

    monkeypatch.setattr("finemoe.runtime.profile.save_arrays", save)
    done = run("-m", qwen3, "-p", "Why?", "--max-new-tokens", "2", "--profile", str(profile))
    assert "hit rate" in done.stdout
    assert str(done.exception) == f"{profile}: No space left on device; free some space, or write elsewhere"


def test_other_weights_of_a_gguf_file_are_bfloat16_and_it_is_stated(tmp_path, monkeypatch):
    file = qwen3moe(lambda name: Type.Q4_K if "_exps" in name else Type.F32).write(tmp_path)
    arguments = ["-m", str(file), "-p", "a b", "--max-new-tokens", "2", "--expert-memory", "0.5"]
    types = []

    def load(*arguments, **options):
        types.append(options["dtype"])
        return original(*arguments, **options)

    original = finemoe.load
    monkeypatch.setattr("finemoe.runtime.loading.load", load)
    line = "bfloat16  (as Transformers: --dtype float32)"
    assert line in run(*arguments).stdout
    assert line not in run(*arguments, "--dtype", "float32").stdout
    assert types == ["bfloat16", "float32"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no prompt; give one of --prompt TEXT, --prompt - (standard input) and --prompt-file FILE, or --chat"),
        (["-p", "x", "--prompt-file", "y"], "there are two prompts; give one of"),
        (["-p", ""], "the prompt is empty"),
        (["--prompt-file", "none.txt"], "none.txt: no such file"),
        (["--chat", "-p", "x"], "--chat reads its turns from standard input; leave --prompt and --prompt-file out"),
        (["--chat", "--json"], "--chat prints answers as they come; leave --json out"),
        (["--chat", "--raw"], "--chat talks through a chat template, which --raw leaves out"),
        (["-p", "x", "--system", "y"], "--system is a message of a chat, but this model's tokenizer has no chat template"),
        (["-p", "x", "--template-option", "y"], "--template-option y: write NAME=VALUE"),
        (
            ["-p", "x", "--greedy", "--top-p", "0.5"],
            "are of sampling, but greedy decoding is asked for",
        ),
        (["-p", "x", "--top-p", "2"], "--top-p is 2.0; it must be in (0, 1]"),
        (["-p", "x", "--sample", "--temperature", "0"], "--temperature is 0.0; it must be above 0"),
        (["-p", "x", "--profile", "/"], "/: is a folder; name a file to write"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    assert message in refusal("-m", "mixtral-mini", *arguments)


def test_input_that_is_not_text_is_one_line():
    for arguments in (["-p", "-"], ["--prompt-file", "/dev/stdin"]):
        done = subprocess.run(
            [sys.executable, "-X", "utf8=0", "-m", "finemoe", "run", "-m", "mixtral-mini", *arguments],
            input=b"caf\xe9",
            capture_output=True,
            env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8:strict"},
            timeout=60,
        )
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert b"not text in UTF-8" in done.stderr


def test_a_chat_that_cannot_go_on_keeps_its_counters_and_its_profile(qwen3, tmp_path):
    """The second turn has more tokens than the model has positions."""
    text, profile = f"Why?\n{'a b ' * 25_000}\nAnd then?\n", tmp_path / "a.profile"
    done = run("-m", qwen3, "--chat", "--max-new-tokens", "2", "--profile", str(profile), text=text)
    assert "2 tokens" in done.stdout
    assert "hit rate" in done.stdout
    assert profile.is_file()
    assert isinstance(done.exception, FinemoeError)
    assert "tokens, but this model has positions for 40,960" in str(done.exception)


def test_a_chat_without_turns_has_no_numbers(qwen3):
    shown = run("-m", qwen3, "--chat", text="").stdout
    assert "0 tokens in 0 answers" in shown
    assert "no accesses" in shown
    assert "nan" not in shown


def test_random_weights_are_refused_at_once():
    line = refusal("-m", "random:data/models/configs/qwen1.5-moe-a2.7b.json", "-p", "x")
    assert "random weights write no text and have no tokenizer; name a checkpoint, or measure this size in Python" in line


def test_a_checkpoint_without_its_tokenizer_is_refused(qwen3, tmp_path):
    """Transformers would make a tokenizer without words of it."""
    folder = tmp_path / "bare"
    shutil.copytree(qwen3, folder, ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    assert "has no words: its files, such as tokenizer.json, are missing in" in refusal("-m", str(folder), "-p", "x")


def test_a_prompt_longer_than_the_context_is_refused(qwen3, tmp_path):
    (tmp_path / "long.txt").write_text("a b " * 25_000)
    line = refusal("-m", qwen3, "--prompt-file", str(tmp_path / "long.txt"))
    assert "tokens, but this model has positions for 40,960; shorten it" in line


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["run", "-m", "Qwen/Qwen1.5-MoE-A2.7B-Chat", "-p", "x"], {"HF_HUB_OFFLINE": "1"}),
        (["run", "-m", "openai/gpt-oss-20b", "-p", "x"], {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none"}),
        (["record", "-m", "openai/gpt-oss-20b", "-o", "{}/a.trace"], {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ],
)
def test_a_hub_out_of_reach_is_one_line_within_seconds(arguments, variables, tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = {**kept, "HF_HOME": str(tmp_path), **variables}
    done = subprocess.run(
        [sys.executable, "-m", "finemoe", *(one.format(tmp_path) for one in arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "is neither a folder nor in the Hugging Face cache" in done.stderr
