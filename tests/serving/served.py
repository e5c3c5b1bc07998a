"""A tiny random model behind the server, in a thread of the tests' process."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

import finemoe
from finemoe.runtime.loading import load_tokenizer
from finemoe.serving.server import bind
from finemoe.serving.service import Service
from tests.runtime.models import _COMMON

NAME, CONTEXT, MOST_NEW = "tiny-moe", 256, 40
CHAT = [{"role": "user", "content": "Why is the sea salty?"}]


def tiny_model(tokenizer: Any) -> PreTrainedModel:
    """A random model that writes words of ASCII letters, and other words for other prompts."""
    torch.manual_seed(3)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, "initializer_range": 0.3}
    experts = {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2}
    model = MixtralForCausalLM(MixtralConfig(**_COMMON | sizes, **experts)).eval()
    with torch.no_grad():
        for token in range(len(tokenizer)):
            if not tokenizer.decode([token]).isascii() or token in tokenizer.all_special_ids:
                model.lm_head.weight[token] = 0
    model.set_experts_implementation("eager")
    return model


@dataclass
class Live:
    """A running server, and what is behind it."""

    model: PreTrainedModel
    engine: Any
    tokenizer: Any
    service: Service
    port: int
    http: httpx.Client

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(**self.options(**options))

    def options(self, **options: Any) -> dict[str, Any]:
        """Arguments of a client, synchronous or not."""
        return {"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0, "timeout": 60, **options}

    def send(self, path: str, body: dict[str, Any]) -> socket.socket:
        """Send a request, and return its connection."""
        request = httpx.Request("POST", self.url + path, json=body)
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        connection = socket.create_connection(("localhost", self.port))
        connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.content)
        return connection

    def expected(self, text: str, num_new: int, **options: Any) -> str:
        """What the model's own `generate` writes after a text."""
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=not text.startswith(self.tokenizer.bos_token))
        options = {"do_sample": False, "pad_token_id": self.tokenizer.pad_token_id, **options}
        output = self.model.generate(**inputs, max_new_tokens=num_new, tokenizer=self.tokenizer, **options)
        return self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def expected_chat(self, messages: list[dict[str, str]], num_new: int, **options: Any) -> str:
        """The same for a chat, by the plain template's definition."""
        lines = "".join(f"{message['role'].capitalize()}: {message['content']}\n" for message in messages)
        return self.expected(f"{self.tokenizer.bos_token}{lines}Assistant:", num_new, **options)


@contextmanager
def served(**options: Any) -> Iterator[Live]:
    """A server for as long as the block runs; options as those of Service."""
    transformers.logging.set_verbosity_error()
    tokenizer = load_tokenizer("mixtral-mini")
    model = tiny_model(tokenizer)
    with (
        finemoe.offload(model, 0.3) as engine,
        Service(model, engine, tokenizer, NAME, ["tiny"], max_new_tokens=MOST_NEW, **options) as service,
        running(service) as port,
        httpx.Client(base_url=f"http://localhost:{port}", timeout=60) as http,
    ):
        yield Live(model, engine, tokenizer, service, port, http)


@contextmanager
def running(service: Service) -> Iterator[int]:
    """The port under which a service is reached for as long as the block runs."""
    ready, sockets = threading.Event(), bind("localhost", 0)
    server = service.server(ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)), name="server")
    thread.start()
    assert ready.wait(20)
    try:
        yield sockets[0].getsockname()[1]
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait, but not for ever."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
