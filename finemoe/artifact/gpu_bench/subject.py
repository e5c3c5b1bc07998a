"""A model under measurement: its experts are loaded into host memory once and lent to every engine and baseline."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from finemoe.artifact.gpu_bench.bench import NotHere
from finemoe.artifact.gpu_bench.settings import Settings, Target, is_fast_enough
from finemoe.models.layers import MoELayer
from finemoe.models.shipped import resolve
from finemoe.runtime.engine import Engine
from finemoe.runtime.lean import is_common
from finemoe.runtime.offloading import policy_setup
from finemoe.runtime.options import engine_options
from finemoe.runtime.random_model import RandomModel
from finemoe.runtime.replayed import ReplayedRouting, with_embeddings_of
from finemoe.runtime.skeleton import Skeleton
from finemoe.runtime.takeover import empty, restore
from finemoe.traces import RoutingTrace

_DTYPE = torch.bfloat16


class Subject:
    """One model with the requests it serves; everything except its experts stays on the device.

    Args:
        target: the model.
        trace: its recorded requests, split into history and served.
        settings: the settings of the measurement.
        device: the device that computes.
    Attributes:
        history, served: requests; results are timed on `served` only.
    """

    def __init__(self, target: Target, trace: RoutingTrace, settings: Settings, device: torch.device) -> None:
        self.name, self.device, self._settings = target.name, device, settings
        self._is_random = target.recorded_from is not None
        skeleton = (
            RandomModel(target.source, _DTYPE, settings.seed) if self._is_random else Skeleton(resolve(target.source), _DTYPE)
        )
        self.model, self.layers = skeleton.model, skeleton.layers
        self._records = skeleton.read_experts(pinned=device.type == "cuda", is_sure=True)  # `Subjects` has checked the room
        try:
            self._move_rest()
            trace = with_embeddings_of(self.model, trace, settings.seed) if self._is_random else trace
            self.history, self.served = trace.split("history"), trace.split("served")
        except BaseException:
            self.close()
            raise

    @contextmanager
    def engine(
        self, policy: str, expert_memory: float, requests: RoutingTrace | None = None
    ) -> Iterator[tuple[Engine, ReplayedRouting]]:
        """The model under a policy that knows the history, and the replayed requests (`served` unless `requests` is given).

        Raises:
            NotHere: the policy searches, and its searches are not compiled.
        """
        self.require_speed(policy)
        settings = self._settings
        options = engine_options(expert_memory, policy, devices=self.device)
        distance = min(settings.prefetch_distance, len(self.layers))
        setup = policy_setup(self.model, self.layers, self.history, distance, settings.store_capacity, settings.seed)
        with (
            self._routing(requests) as routing,
            Engine(self.model, self.layers, setup, options, self._records, keeps_records=False) as engine,
        ):
            yield engine, routing

    @contextmanager
    def plain(
        self, requests: RoutingTrace | None = None, is_on_device: Callable[[MoELayer], bool] = lambda layer: True
    ) -> Iterator[ReplayedRouting]:
        """The whole model as Transformers runs it; each layer's experts are on the device or in ordinary host memory."""
        try:
            for layer in self.layers:
                restore(layer, self._records, self.device if is_on_device(layer) else torch.device("cpu"))
            with self._routing(requests) as routing:
                yield routing
        finally:
            self.model.set_experts_implementation("eager")
            for layer in self.layers:
                empty(layer, self.device)

    def require_speed(self, policy: str) -> None:
        """Refuse a policy whose searches are not compiled.

        Raises:
            NotHere: the policy's searches are not compiled.
        """
        if not is_fast_enough(policy):
            raise NotHere("Numba cannot be imported here, and searches that are not compiled would measure nothing but that")

    def require_parts(self) -> None:
        """Refuse a model whose attention and experts cannot be timed separately.

        Raises:
            NotHere: the experts run in the model's own forward, which cannot be left out.
        """
        if not all(is_common(type(layer.experts)) for layer in self.layers):  # type: ignore[arg-type]
            raise NotHere("the experts run through the model's own forward, so that a layer's parts cannot be timed apart")

    def close(self) -> None:
        """Free the host memory."""
        self._records.close()

    def _move_rest(self) -> None:
        for layer in self.layers:
            empty(layer, self.device)
        self.model.to(self.device)

    @contextmanager
    def _routing(self, requests: RoutingTrace | None) -> Iterator[ReplayedRouting]:
        with ReplayedRouting(self.model, requests or self.served, self._is_random) as routing:
            yield routing
