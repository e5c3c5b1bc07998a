"""Observes a model's iterations from outside: embeddings, gate outputs, padding, and when a forward begins and ends.

Attach and detach are inverses; the model's class, signature and modules stay untouched.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from finemoe.models.layers import MoELayer
from finemoe.runtime.phases import Call, Forward, Phase, Requests, cache_of


class Listener(Protocol):
    """Who is told. `is_prefill`: whether it is known to be one. `rows` are the indices of the token rows that count (padding left
    out), or None where all do; what else is known of the forward is `Observer.forward`."""

    def on_forward_start(self) -> None: ...

    def on_start(self, embeddings: torch.Tensor, is_prefill: bool, rows: torch.Tensor | None) -> None: ...

    def on_router(self, layer: int, output: Any) -> None: ...

    def on_forward_end(self, is_complete: bool) -> bool: ...


class Observer:
    """Forward hooks on the embedding layer, the routers, and the modules that may be called with tokens: the model, and those
    inside it that hold its embedding layer or all of its MoE layers. The outermost that a thread calls is its forward.

    Args:
        model: a Transformers model; layers: its MoE layers; listener: who is told; gates: whether gate outputs are wanted.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer], listener: Listener, gates: bool = True) -> None:
        self._listener = listener
        self._requests = Requests()
        self._of_thread = _Calls()
        embedding = embedding_of(model)
        # Where `generate` compiles the forward (static cache), the hooks are no part of the graph.
        self._handles = []
        self.modules = list(_callable_with_tokens(model, layers, embedding))
        for module in self.modules:
            before, after = torch.compiler.disable(self._before_forward), torch.compiler.disable(self._after_forward)
            self._handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(module.register_forward_hook(after, always_call=True))
        if embedding is not None:
            self._handles.append(embedding.register_forward_hook(torch.compiler.disable(self._after_embedding)))
        for layer in layers if gates else ():
            if layer.router is not None:
                self._handles.append(layer.router.register_forward_hook(self._gate_hook(layer.index)))

    @property
    def forward(self) -> Forward:
        """What is known of the calling thread's forward."""
        if not self.is_inside:
            return self._requests.unknown()
        known, calls = self._of_thread.forward, self._of_thread.stack
        if known is None:  # it came past the embedding layer: all that is known is whether its cache was empty
            known = self._requests.forward(calls[-1], 0, 0)
            known = replace(known, phase=Phase.UNKNOWN) if known.phase is Phase.SEVERAL else known
            self._of_thread.forward = known
        return known

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is in a forward."""
        calls = self._of_thread.stack
        return bool(calls) and _is_running(calls[0].module)

    def detach(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()

    def _before_forward(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        calls = self._of_thread.stack
        while calls and not (module is not calls[-1].module and _is_running(calls[-1].module)):
            calls.pop()  # an interrupt broke it off
        is_outermost = not calls
        if is_outermost:
            self._of_thread.forward = None
            self._listener.on_forward_start()
        call = Call(module, args, kwargs)
        calls.append(call)
        if is_outermost and call.embeds is not None:
            self._start(call.embeds)

    def _after_embedding(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if self._of_thread.stack:  # tokens that are embedded by hand are no forward
            self._start(output)

    def _start(self, embeddings: torch.Tensor) -> None:
        batch, num_tokens = (1, *embeddings.shape[:-1])[-2:]
        calls = self._of_thread.stack
        rows = embeddings.reshape(-1, embeddings.shape[-1])
        if self._of_thread.forward is None:
            self._of_thread.forward = self._requests.forward(_together(calls, batch, num_tokens), batch, num_tokens)
        known = self._of_thread.forward
        self._listener.on_start(rows, known.phase.is_prefill is True, known.rows)

    def _after_forward(self, module: nn.Module, args: Any, output: Any) -> None:
        calls = self._of_thread.stack
        if not any(call.module is module for call in calls):
            return  # refused before it began, or given up after an interrupt
        while calls.pop().module is not module:
            pass
        if self._of_thread.forward is not None:
            self._requests.remember(cache_of(output), self._of_thread.forward.request)
        if not calls:
            self._listener.on_forward_end(output is not None)
            self._of_thread.forward = None

    def _gate_hook(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        @torch.compiler.disable
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self._listener.on_router(layer, output)

        return hook


class _Calls(threading.local):
    """The calling thread's own: the modules it is inside of, outermost first, and what is known of the forward they are."""

    def __init__(self) -> None:
        self.stack: list[Call] = []
        self.forward: Forward | None = None


def embedding_of(model: nn.Module) -> nn.Module | None:
    """The model's token-embedding layer, or None where it names none."""
    try:
        embedding: nn.Module | None = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return None
    return embedding


def _callable_with_tokens(model: nn.Module, layers: Sequence[MoELayer], embedding: nn.Module | None) -> Iterator[nn.Module]:
    parents = [set(_parents(layer.name)) for layer in layers]
    names = {"", *set.intersection(*parents)}
    for name, module in model.named_modules():
        if module is embedding:
            names.update(_parents(name))
    modules = dict(model.named_modules())
    yield from (modules[name] for name in sorted(names, key=len) if type(modules[name]).forward is not nn.Module.forward)


def _parents(name: str) -> list[str]:
    """Names of all that contain a module: "a.b.c" -> "", "a", "a.b"."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def _together(calls: Sequence[Call], batch: int, num_tokens: int) -> Call:
    """The innermost call, which says most, with the padding that one further out names if it names none."""
    inner = calls[-1]
    for call in reversed(calls):
        if call.padding(batch, num_tokens) is not None:
            inner.mask, inner.past_tokens = call.mask, inner.past_tokens
            break
    for call in calls:
        inner.packed = inner.packed or call.packed
        if inner.cache is None and call.cache is not None and call.packed is not None:
            inner.cache = call.cache
    return inner


def _is_running(module: nn.Module) -> bool:
    """Whether the calling thread is inside a module's call."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "_call_impl" and frame.f_locals.get("self") is module:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False
