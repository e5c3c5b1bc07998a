"""FineMoE with several prefetch chunk sizes: demand loads overtake small chunks sooner, large chunks cost the host less."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from finemoe.artifact.gpu_bench.bench import Part
from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.artifact.gpu_bench.subject import Subject
from finemoe.artifact.gpu_bench.subjects import Subjects
from finemoe.artifact.gpu_bench.systems import requests_of, serve
from finemoe.artifact.machines.schema import Chunks

_POLICY = "finemoe"
_IN_FLIGHT = 2


def parts(settings: Settings, subjects: Subjects) -> Iterator[Part]:
    """One part per model and chunk size, at the baselines' memory size; the largest chunk is a whole expert."""
    for target in settings.targets():
        for kib in (*settings.chunk_kib, None):

            def run(target: Target = target, kib: int | None = kib) -> list[Chunks]:
                return measure(subjects.of(target, settings.baseline_memory), None if kib is None else kib << 10, settings)

            name = f"{target.name} {'whole' if kib is None else f'{kib}KiB'}"
            yield Part("chunks", name, 15.0, run, partial(subjects.seconds_to_build, target))


def measure(subject: Subject, chunk_bytes: int | None, settings: Settings) -> list[Chunks]:
    """Serve the requests one after the other, as in `systems`; `chunk_bytes` None moves an expert in one piece."""
    requests = requests_of(subject.served, _POLICY, settings)
    with subject.engine(_POLICY, settings.baseline_memory, requests) as (engine, routing):
        for memory in engine.memories.memories:
            memory.link.chunk_bytes = chunk_bytes or memory.records.record_bytes
            memory.link.chunks_in_flight = _IN_FLIGHT
            memory.connect(memory.link)
        found = serve(subject.name, engine, routing, requests, _POLICY, settings.baseline_memory)
        link = engine.memories.memories[0].link
        return [Chunks(**asdict(one), chunk_bytes=link.chunk_bytes, chunks_in_flight=link.chunks_in_flight) for one in found]
