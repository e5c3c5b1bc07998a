"""The `Engine` class: public interface to a model whose experts are offloaded (DESIGN 5)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
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
from finemoe.runtime.profile import Profile
from finemoe.runtime.session import Session
from finemoe.runtime.tiers import ExpertStore


class Engine:
    """The expert memory, policy and counters of an attached model, created by `offload` or `load`.

    An engine is a context manager that closes itself on exit. Inspect its parts freely and measure them through `probe`; change
    its state only through the methods of this class.

    Args:
        model: a Transformers MoE model.
        layers: the MoE layers of the model.
        setup: what the policy gets to know about the model.
        options: how the engine runs.
        records: a store that already holds the experts; None moves them out of the model.
        keeps_records: whether closing the engine also closes a given store; otherwise the store is borrowed and stays open for
            the next engine.
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
        self._earlier: Profile | None = None  # of the runs that this one goes on from
        self._attachment.attach(records, keeps_records)

    @property
    def parts(self) -> Parts:
        """The objects that work together while the engine is attached."""
        return self._attachment.parts

    @property
    def policy(self) -> Policy:
        """The policy that decides what to prefetch."""
        return self.parts.policy

    @property
    def memories(self) -> DeviceMemories:
        """The expert memory of every device."""
        return self.parts.memories

    @property
    def records(self) -> ExpertStore:
        """The store that holds every expert's record."""
        return self._attachment.records

    @property
    def session(self) -> Session:
        """Which thread is inside the model."""
        return self.parts.session

    @property
    def iteration(self) -> Iteration:
        """The current iteration, or the last one if none is running."""
        return self._attachment.iterations.current

    @property
    def probe(self) -> Probe:
        """The attachment point for measurements."""
        return self.parts.probe

    @property
    def eviction(self) -> str:
        """Name of the eviction rule."""
        return self._attachment.eviction

    @property
    def expert_memory_bytes(self) -> int:
        """Total size of the slots of all devices, in bytes."""
        return self._attachment.expert_memory_bytes

    def report(self) -> Report:
        """Return the counters so far, once the matcher has processed all published events.

        Raises:
            EngineError: a worker thread has failed.
        """
        self.parts.matcher.flush()
        self._attachment.iterations.raise_failures()
        unused_bytes = sum(memory.unused_bytes for memory in self.memories.memories)
        return Report.of(self.parts.counters, self.options.policy, self.eviction, self.expert_memory_bytes, unused_bytes)

    def preload(self) -> None:
        """Fill the free slots before the first request with the experts that the policy expects most, or with all that fit.

        Raises:
            EngineError: the engine is closed, this process was forked, or another thread is inside the model's forward.
        """
        with self._between_forwards(), self._attachment.iterations.moving():
            self.memories.preload()

    def load_profile(self, path: str | Path) -> int:
        """Start from the warm-up profile of earlier runs: fill the free slots with the experts that they demanded most, and let
        the policy go on from what it learned.

        Args:
            path: a file that `save_profile` wrote.
        Returns:
            The number of experts loaded.
        Raises:
            FinemoeError: the file is missing, damaged, or of another model.
            EngineError: as `preload`.
        """
        profile = Profile.load(path)
        profile.require_model(path, self.setup.model, (self.setup.num_layers, self.setup.num_experts))
        with self._between_forwards():
            self.parts.matcher.flush()  # the policy is the matcher's until it has heard everything
            if learned := profile.learned.get(self.options.policy):
                self.policy.restore(learned)
            before = sum(memory.cache.num_resident for memory in self.memories.memories)
            with self._attachment.iterations.moving():
                for index, memory in enumerate(self.memories.memories):
                    memory.preload([key for key in profile.experts() if self.memories.owner(*key) == index])
            self._earlier = profile
            return sum(memory.cache.num_resident for memory in self.memories.memories) - before

    def save_profile(self, path: str | Path) -> None:
        """Write a warm-up profile of this run, and of those that `load_profile` started it from, to one file, atomically.

        Raises:
            EngineError: as `preload`.
        """
        with self._between_forwards():
            self.parts.matcher.flush()
            visits = sum(memory.cache.arrays.stats.frequency - 1 for memory in self.memories.memories)
            demands = np.asarray(visits, dtype=np.float64).reshape(self.setup.num_layers, self.setup.num_experts)
            learned = self.policy.learned()
            profile = Profile(self.setup.model, demands, {self.options.policy: learned} if learned else {})
            profile.after(self._earlier).save(path)

    @contextmanager
    def _between_forwards(self) -> Iterator[None]:
        """Hold the model while no forward runs; one that another thread starts meanwhile waits."""
        self.session.require_process()
        with self.session.door:
            if self.session.is_closed:
                raise EngineError("this engine is closed; offload the model again")
            self.session.require_turn()
            self._attachment.iterations.recover()
            yield

    def reset_counters(self) -> None:
        """Restart all counters. Cache and policy keep their state; a running iteration counts from here on."""
        self.parts.matcher.flush()
        self.parts.counters.reset()
        self._attachment.iterations.durations.reset()
        if self.iteration.is_open and self.session.is_used:
            self.parts.counters.enter_request(self.iteration.forward.request)

    @contextmanager
    def timeline(self, path: str | Path) -> Iterator[None]:
        """Record what compute, links and matcher do in the `with` block; write it to `path` for Perfetto or chrome://tracing."""
        timeline = self.parts.timeline
        timeline.start()
        try:
            yield
            self.parts.matcher.flush()
        finally:
            timeline.stop()
        timeline.save(path)

    def close(self) -> None:
        """Stop the threads and restore the model exactly; closing twice is harmless.

        Raises:
            EngineError: another thread is inside the model's forward, or this process was forked.
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
            error.add_note(f"Closing the engine: {refusal}")  # the caller needs to see the first error
