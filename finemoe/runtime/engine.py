"""The engine: the face of what happens around and inside a model's forward while its experts are offloaded (DESIGN 5)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from torch import nn

from finemoe.errors import EngineError
from finemoe.models.layers import MoELayer
from finemoe.policies.base import Policy, PolicySetup
from finemoe.report import Report
from finemoe.runtime.attachment import Attachment
from finemoe.runtime.devices import DeviceMemories
from finemoe.runtime.iteration import Iteration
from finemoe.runtime.options import EngineOptions
from finemoe.runtime.parts import Parts
from finemoe.runtime.probe import Probe
from finemoe.runtime.session import Session
from finemoe.runtime.tiers import ExpertStore


class Engine:
    """An attached model's expert memory, policy and counters. Made by `offload` or `load`; a context manager that closes itself.

    Its parts are there to be looked at, and `probe` to measure them; only what has a method here is to be changed.

    Args:
        model: a Transformers MoE model; layers: its MoE layers; setup: what the policy is told; options: how the engine runs.
        records: a store that holds the experts already; None takes them out of the model.
        keeps_records: whether a given store is the engine's to close; otherwise it is lent, and stays for the next engine.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[MoELayer],
        setup: PolicySetup,
        options: EngineOptions,
        records: ExpertStore | None = None,
        keeps_records: bool = True,
    ) -> None:
        self.model, self.layers, self.setup, self.options = model, layers, setup, options
        self._attachment = Attachment(model, layers, setup, options)
        self._attachment.attach(records, keeps_records)

    @property
    def parts(self) -> Parts:
        """All of them."""
        return self._attachment.parts

    @property
    def policy(self) -> Policy:
        """What decides."""
        return self.parts.policy

    @property
    def memories(self) -> DeviceMemories:
        """The expert memory of every device."""
        return self.parts.memories

    @property
    def records(self) -> ExpertStore:
        """Where experts wait."""
        return self._attachment.records

    @property
    def session(self) -> Session:
        """Who is inside."""
        return self.parts.session

    @property
    def iteration(self) -> Iteration:
        """The iteration that runs, or ran last."""
        return self._attachment.iterations.current

    @property
    def probe(self) -> Probe:
        """The seam for measurements."""
        return self.parts.probe

    @property
    def eviction(self) -> str:
        """The eviction rule's name."""
        return self._attachment.eviction

    @property
    def expert_memory_bytes(self) -> int:
        """What the slots of all devices take."""
        return self._attachment.expert_memory_bytes

    def report(self) -> Report:
        """The counters so far, after the matcher has handled what was published.

        Raises:
            EngineError: a worker has failed.
        """
        self.parts.matcher.flush()
        self._attachment.iterations.raise_failures()
        unused_bytes = sum(memory.unused_bytes for memory in self.memories.memories)
        return Report.of(self.parts.counters, self.options.policy, self.eviction, self.expert_memory_bytes, unused_bytes)

    def preload(self) -> None:
        """Fill the free slots before the first request, with what the policy expects most; all of the model where it fits.

        Raises:
            EngineError: another thread is inside the model's forward.
        """
        self.session.require_process()
        with self.session.door:  # until it is done: a forward that another thread begins waits for it
            if self.session.is_closed:
                raise EngineError("this engine is closed; offload the model anew")
            self.session.require_turn()
            self._attachment.iterations.recover()
            with self._attachment.iterations.moving():
                self.memories.preload()

    def reset_counters(self) -> None:
        """Start counting anew; cache and policy keep their state. An iteration that runs meanwhile counts from here on."""
        self.parts.matcher.flush()
        self.parts.counters.reset()
        self._attachment.iterations.durations.reset()
        if self.iteration.is_open and self.session.is_used:
            self.parts.counters.enter_request(self.iteration.forward.request)

    @contextmanager
    def timeline(self, path: str | Path) -> Iterator[None]:
        """Record what compute, links and matcher do inside the `with` block, and write it for Perfetto or chrome://tracing."""
        timeline = self.parts.timeline
        timeline.start()
        try:
            yield
            self.parts.matcher.flush()
        finally:
            timeline.stop()
        timeline.save(path)

    def close(self) -> None:
        """Stop the threads and give the model back exactly as it was; closing twice is harmless.

        Raises:
            EngineError: another thread is inside the model's forward.
        """
        self.session.require_process()
        with self.session.door:
            if not self.session.is_closed:
                self.session.require_turn()
                self._attachment.undo()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except EngineError as refusal:
            if error is None:
                raise
            error.add_note(f"Closing the engine: {refusal}")  # what went wrong first is what the caller must hear
