"""`/metrics` has what `engine.report()` has, and what clients saw; reading it disturbs nothing."""

import threading

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

import finemoe
from finemoe.serving.metrics import Metrics
from finemoe.serving.running import RunningRequests
from tests.runtime.models import build
from tests.serving.served import CHAT, NAME, wait_until

OF_THE_ENGINE = {
    "finemoe_expert_hits_total": "hits",
    "finemoe_expert_late_total": "late",
    "finemoe_expert_misses_total": "misses",
    "finemoe_expert_hit_ratio": "hit_rate",
    "finemoe_expert_memory_bytes": "expert_memory_bytes",
    "finemoe_demand_bytes_total": "demand_bytes",
    "finemoe_prefetched_bytes_total": "prefetched_bytes",
    "finemoe_wasted_bytes_total": "wasted_bytes",
    "finemoe_stall_seconds_total": "stall_s",
    "finemoe_prefills_total": "num_prefills",
    "finemoe_decode_steps_total": "num_decode_steps",
}


def scraped(live) -> dict[str, float]:
    """Every sample, by name and labels."""
    answer = live.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {
        sample.name + "".join(f" {label}" for label in sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


def settled(live):
    """The report, once every request is counted and no expert is under way."""
    wait_until(lambda: not live.service.running.requests())
    live.engine.report()
    wait_until(lambda: all(memory.wait_until_idle() for memory in live.engine.memories.memories))
    return live.engine.report()


def test_the_engines_counters(live):
    with live.client() as client:
        client.completions.create(model=NAME, prompt="The wheel", max_tokens=5)
    report = settled(live)
    samples = scraped(live)
    assert {name: samples[name] for name in OF_THE_ENGINE} == {
        name: pytest.approx(getattr(report, attribute)) for name, attribute in OF_THE_ENGINE.items()
    }
    assert samples["finemoe_engine_up"] == 1
    assert report.accesses > 0


def test_requests_and_tokens(live):
    settled(live)
    before = scraped(live)
    with live.client() as client:
        usages = [client.completions.create(model=NAME, prompt="The wheel", max_tokens=num).usage for num in (1, 5)]
        list(client.completions.create(model=NAME, prompt="The wheel", max_tokens=3, stream=True))
        for wrong in ("another", NAME):
            assert live.http.post("/v1/completions", json={"model": wrong, "n": 2}).status_code == 400
        list(client.chat.completions.create(model=NAME, messages=CHAT, max_tokens=2, stream=True))
    settled(live)
    after = scraped(live)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["finemoe_requests_total /v1/completions 200"] == 3
    assert grown["finemoe_requests_total /v1/completions 400"] == 2
    assert grown["finemoe_requests_total /v1/chat/completions 200"] == 1
    assert grown["finemoe_generated_tokens_total"] == 1 + 5 + 3 + 2
    assert grown["finemoe_prompt_tokens_total"] == 3 * usages[0].prompt_tokens + 13
    assert grown["finemoe_time_to_first_token_seconds_count"] == 4
    assert grown["finemoe_time_per_output_token_seconds_count"] == 0 + 4 + 2 + 1
    assert (after["finemoe_requests_running"], after["finemoe_requests_waiting"]) == (0, 0)


def test_reading_disturbs_nothing(live):
    """Neither tokens nor counts change, however often it is read meanwhile."""
    expected, is_over = live.expected("The wheel", 30), threading.Event()
    before = live.engine.report()
    readings: list[float] = []

    def read() -> None:
        while not is_over.is_set():
            readings.append(scraped(live)["finemoe_decode_steps_total"])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with live.client() as client:
            answer = client.completions.create(model=NAME, prompt="The wheel", max_tokens=30).choices[0].text
    finally:
        is_over.set()
        reader.join()
    after = live.engine.report()
    assert answer == expected
    assert after.num_decode_steps - before.num_decode_steps == 29
    assert after.accesses == after.hits + after.late + after.misses
    assert readings == sorted(readings)


def test_counters_never_fall_when_drafts_are_rejected():
    """What only rejected drafts demanded is taken out of the report one step later; Prometheus would take that for a restart."""
    model, tokens = build("mixtral"), torch.tensor([[7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8]])
    seen: list[dict[str, float]] = []
    with finemoe.offload(model, 0.3, "on-demand", asynchronous=False) as engine:
        metrics = Metrics(engine, RunningRequests())

        def scrape(*_) -> None:
            families = text_string_to_metric_families(metrics.text().decode())
            seen.append({one.name: one.value for family in families if family.type == "counter" for one in family.samples})

        handles = [model.model.layers[0].register_forward_pre_hook(scrape), model.register_forward_hook(scrape)]
        model.generate(tokens, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0, prompt_lookup_num_tokens=3)
        for handle in handles:
            handle.remove()
        scrape()
        assert engine.report().drafts.rejected_accesses > 0
    for name in OF_THE_ENGINE.keys() & seen[0].keys():
        values = [sample[name] for sample in seen]
        assert values == sorted(values), name
