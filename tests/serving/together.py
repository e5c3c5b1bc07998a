"""What a batch gains: the same requests to a server one by one, and to one with `--batched`.

    python -m tests.serving.together [requests] [clients] [new tokens] [--fp32]

serves mixtral-mini with a quarter of its experts in memory, in this process, and prints seconds, demanded experts and how many
answers differ. In fp32 none should.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import torch
import transformers

import finemoe
from finemoe.runtime.loading import load_tokenizer
from finemoe.serving.service import Service
from tests.serving.served import running
from tests.serving.storm import SUBJECTS

ASKED = ("Tell me about the {}.", "Why is the {} here?", "Where did the {} come from?", "Who painted the {}?")
PROMPTS = [text.format(subject) for text in ASKED for subject in SUBJECTS]


def measured(
    num_requests: int, num_clients: int, num_new: int, is_batched: bool, dtype: torch.dtype
) -> tuple[float, int, list[str]]:
    """Seconds, demanded experts and answers."""
    tokenizer = load_tokenizer("mixtral-mini")
    model, engine = finemoe.load("mixtral-mini", 0.25, dtype=dtype)
    with (
        engine,
        Service(model, engine, tokenizer, "mixtral-mini", is_batched=is_batched) as service,
        running(service) as port,
        httpx.Client(base_url=f"http://localhost:{port}", timeout=600) as http,
        ThreadPoolExecutor(num_clients) as pool,
    ):

        def answer(number: int) -> str:
            body = {"prompt": PROMPTS[number % len(PROMPTS)], "max_tokens": num_new, "temperature": 0}
            return str(http.post("/v1/completions", json=body).json()["choices"][0]["text"])

        answer(0)  # compiles
        engine.reset_counters()
        begin_s = time.perf_counter()
        answers = list(pool.map(answer, range(num_requests)))
        return time.perf_counter() - begin_s, engine.report().accesses, answers


def main(num_requests: int = 40, num_clients: int = 40, num_new: int = 24, is_fp32: bool = False) -> None:
    transformers.logging.set_verbosity_error()
    dtype = torch.float32 if is_fp32 else torch.bfloat16
    alone_s, alone, answers = measured(num_requests, num_clients, num_new, False, dtype)
    batch_s, batch, others = measured(num_requests, num_clients, num_new, True, dtype)
    differ = sum(one != other for one, other in zip(answers, others, strict=True))
    print(f"one by one: {alone_s:.1f} s, {alone} demanded experts")
    print(f"batched:    {batch_s:.1f} s, {batch} demanded experts")
    print(f"ratios:     {alone_s / batch_s:.1f} and {alone / batch:.1f}; {differ} of {num_requests} answers differ")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument != "--fp32"]
    main(*numbers, is_fp32="--fp32" in sys.argv)
