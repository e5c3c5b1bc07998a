"""Many clients at once: answers, hang-ups, prompts that are too long, bodies that are no JSON.

    python -m tests.serving.storm [requests] [clients] [--batched]

serves a tiny random model in this process, sends the requests in rounds, and prints what each round left behind.
"""

import ctypes
import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai

from finemoe.cache.state import LOADING, RESIDENT
from tests.serving.served import CONTEXT, NAME, Live, served, wait_until

NEW = 3
SUBJECTS = ("sea", "wheel", "garden", "captain", "attic", "window", "river", "orbit", "whisk", "tower", "rain", "lamp")


@dataclass
class Storm:
    """Requests to one server.

    Attributes:
        outcomes: how many requests ended how. wrong: answers that are not `generate`'s.
    """

    live: Live
    seed: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    expected: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for subject in SUBJECTS:
            self.expected[subject] = self.live.expected_chat(self._messages(subject), NEW)
        assert len(set(self.expected.values())) > len(SUBJECTS) / 2, "the model does not tell prompts apart"

    def run(self, num_requests: int, num_clients: int) -> None:
        """Send requests from several clients at once, and wait until the server has done with them."""
        shares = [range(client, num_requests, num_clients) for client in range(num_clients)]
        with ThreadPoolExecutor(num_clients) as pool:
            for future in [pool.submit(self._client, share) for share in shares]:
                future.result()
        wait_until(lambda: not self.live.service.running.requests(), 60)

    def _client(self, numbers: range) -> None:
        with self.live.client() as client, httpx.Client(base_url=self.live.url, timeout=60) as http:
            for number in numbers:
                draw = random.Random(self.seed * 100_003 + number)
                kind = draw.choice(("whole", "whole", "streamed", "streamed", "hangs up", "times out", "too long", "no JSON"))
                getattr(self, "_" + kind.replace(" ", "_"))(client, http, draw.choice(SUBJECTS))
                self.outcomes[kind] += 1

    def _whole(self, client: openai.OpenAI, http: httpx.Client, subject: str) -> None:
        answer = client.chat.completions.create(**self._asked(subject))
        self._check(subject, answer.choices[0].message.content)

    def _streamed(self, client: openai.OpenAI, http: httpx.Client, subject: str) -> None:
        stream = client.chat.completions.create(**self._asked(subject), stream=True)
        self._check(subject, "".join(chunk.choices[0].delta.content or "" for chunk in stream))

    def _hangs_up(self, client: openai.OpenAI, http: httpx.Client, subject: str) -> None:
        with http.stream(
            "POST", "/v1/chat/completions", json={**self._asked(subject), "max_tokens": 40, "stream": True}
        ) as answer:
            for _, _ in zip(range(4), answer.iter_lines(), strict=False):
                pass

    def _times_out(self, client: openai.OpenAI, http: httpx.Client, subject: str) -> None:
        self.live.send("/v1/chat/completions", {**self._asked(subject), "max_tokens": 40}).close()

    def _too_long(self, client: openai.OpenAI, http: httpx.Client, subject: str) -> None:
        answer = http.post("/v1/completions", json={"prompt": " the" * CONTEXT})
        if answer.json()["error"]["code"] != "context_length_exceeded":
            self.wrong.append(answer.text)

    def _no_JSON(self, client: openai.OpenAI, http: httpx.Client, subject: str) -> None:
        answer = http.post("/v1/completions", content=b'{"prompt', headers={"content-type": "application/json"})
        if answer.status_code != 400:
            self.wrong.append(answer.text)

    def _asked(self, subject: str) -> dict[str, Any]:
        return {"model": NAME, "messages": self._messages(subject), "max_tokens": NEW}

    def _messages(self, subject: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"Tell me about the {subject}"}]

    def _check(self, subject: str, text: str | None) -> None:
        if text != self.expected[subject]:
            self.wrong.append(f"{subject}: {text!r} is not {self.expected[subject]!r}")


def left_behind(live: Live) -> dict[str, Any]:
    """What must be the same after every round."""
    gc.collect()
    live.http.get("/health")  # its connection, which the server closes after a while, is open each time
    cache = live.engine.memories.memories[0].cache
    wait_until(lambda: not (cache.state == LOADING).any())
    num_files = 0
    while num_files != (num_files := len(os.listdir("/proc/self/fd"))):  # the server closes its ends a moment later
        time.sleep(0.2)
    slots = cache.slot_of[cache.state == RESIDENT].tolist()
    return {
        "threads": sorted(thread.name for thread in threading.enumerate() if not thread.name.startswith(("asyncio", "tqdm"))),
        "files": num_files,
        "requests": len(live.service.running.requests()),
        "inside": live.engine.session.is_used,
        "slots": (len(slots), len(set(slots))),
    }


def rss_mib() -> float:
    """Memory of this process, without what its allocator keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main(num_requests: int = 200, num_clients: int = 10, num_rounds: int = 5, is_batched: bool = False) -> None:
    with served(is_batched=is_batched) as live:
        storm = Storm(live)
        for number in range(num_rounds):
            storm.seed = number
            storm.run(num_requests, num_clients)
            report = live.engine.report()
            is_sum = report.accesses == report.hits + report.late + report.misses
            print(f"round {number}: {len(storm.wrong)} wrong, {rss_mib():.1f} MiB, sum {is_sum}, {left_behind(live)}", flush=True)
        print(dict(storm.outcomes), storm.wrong[:5])


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument != "--batched"]
    main(*numbers, is_batched="--batched" in sys.argv)
