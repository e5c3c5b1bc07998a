"""`finemoe serve` as a program: its options, its first line, a kill and a restart on the same port, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.serving.served_model import names_of
from finemoe.serving.server import bind, is_loopback
from tests.serving.served import CHAT, tiny_model


def refusal_of(*arguments: str) -> str:
    with pytest.raises(FinemoeError) as refused:
        CliRunner().invoke(app, ["serve", *arguments], catch_exceptions=False)
    return str(refused.value)


def test_mistakes_are_one_line(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "two").write_text("a b")
    wrong = {
        ("mixtral-min",): "unknown model 'mixtral-min'",
        ("mixtral-mini", "--log-level", "warn"): "--log-level warn: unknown; did you mean 'warning'?",
        ("mixtral-mini", "--api-key-file", str(tmp_path / "none")): "no such file",
        ("mixtral-mini", "--api-key-file", str(tmp_path / "empty")): "must be one word",
        ("mixtral-mini", "--api-key-file", str(tmp_path / "two")): "must be one word",
        ("mixtral-mini", "--policy", "finemo"): "finemo",
        ("mixtral-mini", "--expert-memory", "6"): "--expert-memory 6",
        ("mixtral-mini", "--host", "no.such.host.invalid"): "--host no.such.host.invalid",
    }
    for arguments, message in wrong.items():
        line = refusal_of(*arguments)
        assert message in line
        assert "\n" not in line


def test_a_port_in_use_is_refused_before_the_model_is_loaded():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = refusal_of("mixtral-mini", "--port", str(port), "--host", "127.0.0.1")
    assert message == f"port {port} on 127.0.0.1: already in use; choose another with --port, or stop the program that has it"
    sockets = bind("127.0.0.1", port)  # nothing of ours kept it
    assert [one.getsockname()[1] for one in sockets] == [port] * len(sockets)
    for one in sockets:
        assert one.proto == socket.IPPROTO_TCP
        one.close()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("a", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) == expected


def test_names(tmp_path):
    assert names_of("mixtral-mini") == ("mixtral-mini", ["mixtral-mini"])
    assert names_of("Qwen/Qwen3-30B-A3B") == ("Qwen/Qwen3-30B-A3B", ["Qwen/Qwen3-30B-A3B"])
    assert names_of(str(tmp_path)) == (tmp_path.name, [str(tmp_path)])


class Program:
    """`finemoe serve` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "finemoe", "serve", str(folder), "--expert-memory", "0.3", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines = [self.process.stdout.readline()]
        while "ready" not in self.lines[-1] and self.lines[-1]:
            self.lines.append(self.process.stdout.readline())
        self.port = int(re.findall(r"http://localhost:(\d+)/v1", self.lines[-1])[0])

    def answer(self) -> str:
        body = json.dumps({"messages": CHAT, "max_tokens": 6}).encode()
        url = f"http://localhost:{self.port}/v1/chat/completions"
        request = urllib.request.Request(url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])

    def end(self, number: int) -> tuple[int, str, str]:
        """The exit code and the output after a signal."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_kill_and_a_restart_on_the_same_port(live, tmp_path):
    """Clients see the same answers afterwards; a signal that can be heard ends the server in order."""
    folder = tmp_path / "tiny"
    live.tokenizer.save_pretrained(folder)
    tiny_model(live.tokenizer).save_pretrained(folder)
    expected = live.expected_chat(CHAT, 6)
    first = Program(folder, "--port", "0")
    assert first.lines[-1].startswith("tiny is ready at http://localhost:")
    assert first.answer() == expected
    open_connection = socket.create_connection(("localhost", first.port))
    assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
    second = Program(folder, "--port", str(first.port))
    open_connection.close()
    assert second.answer() == expected
    code, out, err = second.end(signal.SIGINT)
    assert (code, err) == (130, "")
    assert "hit rate" in out
