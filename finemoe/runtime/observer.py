"""Observes a model's iterations from outside: embeddings, gate outputs, padding, and when a forward begins and ends.

Attach and detach are inverses; the model's class, signature and modules stay untouched. A forward is wrapped, not hooked: an
interrupt inside a forward skips its hooks but not a `finally`.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any, Protocol

import torch
from torch import nn

from finemoe.models.layers import MoELayer, names_above
from finemoe.runtime.phases import Call, Forward, Phase, Requests, cache_of

Hook = Callable[[nn.Module, Any, Any], None]  # (module, args, output)


class Listener(Protocol):
    """Is notified of the outermost forward of each thread. `on_forward_end` comes last, whether or not the forward was complete,
    also if another of these methods raised, and possibly twice."""

    def on_forward_start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None: ...

    def on_start(self, embeddings: torch.Tensor, forward: Forward) -> None: ...

    def on_forward_complete(self) -> None: ...

    def on_forward_end(self) -> None: ...


class Observer:
    """Wraps the forwards of modules that may be called with tokens, and hooks the embedding layer, from `attach` to `detach`.

    These modules are the model and those inside it that hold its embedding layer or all of its MoE layers. The outermost one that
    a thread calls is its forward.

    Args:
        model: a Transformers model.
        layers: its MoE layers.
        listener: is notified.
    """

    def __init__(self, model: nn.Module, layers: Sequence[MoELayer], listener: Listener) -> None:
        self._listener, self._layers = listener, layers
        self._requests = Requests()
        self._of_thread = _Calls()
        self._embedding = embedding_of(model)
        self._modules = list(_callable_with_tokens(model, layers, self._embedding))
        self._undo: list[Callable[[], None]] = []

    def attach(self, router_hooks: Mapping[int, Hook]) -> None:
        """Start observing.

        Args:
            router_hooks: by layer index, the hook to call after the layer's router.
        """
        # Where `generate` compiles the forward (static cache), the observer is not part of the graph.
        for module in self._modules:
            self._undo.append(wrap_forward(module, self._run))
        if self._embedding is not None:
            self._hook(self._embedding, self._after_embedding)
        for layer in self._layers:
            if layer.router is not None and layer.index in router_hooks:
                self._hook(layer.router, router_hooks[layer.index])

    def detach(self) -> None:
        """Restore the model."""
        while self._undo:
            self._undo[-1]()
            self._undo.pop()

    def _hook(self, module: nn.Module, hook: Hook) -> None:
        self._undo.append(module.register_forward_hook(torch.compiler.disable(hook)).remove)

    @property
    def forward(self) -> Forward:
        """What is known about the calling thread's forward."""
        if not self.is_inside:
            return self._requests.unknown()
        known, calls = self._of_thread.forward, self._of_thread.stack
        if known is None:  # it bypassed the embedding layer: only whether its cache was empty is known
            known = self._requests.forward(calls[-1], 0, 0)
            known = replace(known, phase=Phase.UNKNOWN) if known.phase is Phase.SEVERAL else known
            self._of_thread.forward = known
        return known

    @property
    def is_inside(self) -> bool:
        """Whether the calling thread is inside a forward."""
        return bool(self._of_thread.stack)

    @partial(torch.compiler.disable, recursive=False)  # inner calls may be compiled; no graph may span a `finally`
    def _run(self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        depth = len(self._of_thread.stack)
        try:
            try:
                self._enter(module, forward, args, kwargs)
                output = forward(*args, **kwargs)
                self._complete(output)
                return output
            finally:
                self._leave(depth)
        finally:  # again, in case an interrupt came right before it
            self._leave(depth)

    @torch.compiler.disable
    def _enter(self, module: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls = self._of_thread.stack
        is_outermost = not calls
        if is_outermost:
            self._of_thread.forward = None
            self._listener.on_forward_start(args, kwargs)
        call = Call(module, args, kwargs, forward)
        calls.append(call)
        if is_outermost and call.embeds is not None:
            self._start(call.embeds)

    @torch.compiler.disable
    def _complete(self, output: Any) -> None:
        known = self._of_thread.forward
        if known is not None:
            self._requests.remember(cache_of(output), known.request)
        if len(self._of_thread.stack) == 1:
            self._listener.on_forward_complete()

    @torch.compiler.disable
    def _leave(self, depth: int) -> None:
        del self._of_thread.stack[depth:]
        if not depth:
            self._of_thread.forward = None
            self._listener.on_forward_end()

    def _after_embedding(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if self._of_thread.stack:  # embedding tokens by hand is not a forward
            self._start(output)

    def _start(self, embeddings: torch.Tensor) -> None:
        batch, num_tokens = (1, *embeddings.shape[:-1])[-2:]
        calls = self._of_thread.stack
        rows = embeddings.reshape(-1, embeddings.shape[-1])
        if self._of_thread.forward is None:
            self._of_thread.forward = self._requests.forward(_together(calls, batch, num_tokens), batch, num_tokens)
        self._listener.on_start(rows, self._of_thread.forward)


class _Calls(threading.local):
    """Per thread: the modules that it is inside, outermost first, and what is known about their forward."""

    def __init__(self) -> None:
        self.stack: list[Call] = []
        self.forward: Forward | None = None


Around = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def wrap_forward(module: nn.Module, around: Around) -> Callable[[], None]:
    """Replace a module's forward by around(module, forward, args, kwargs).

    The module's signature stays visible, since `generate` inspects it.

    Returns:
        A function that reverts this; calling it again is harmless.
    """
    original, previous = module.forward, module.__dict__.get("forward")
    is_there = True

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(module, original, args, kwargs) if is_there else original(*args, **kwargs)

    wrapped = torch.compiler.disable(forward, recursive=False)
    module.__dict__["forward"] = wrapped

    def undo() -> None:
        nonlocal is_there
        is_there = False  # in case others have wrapped it since
        if module.__dict__.get("forward") is wrapped:
            if previous is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = previous

    return undo


def embedding_of(model: nn.Module) -> nn.Module | None:
    """The model's token-embedding layer, or None if it names none."""
    try:
        embedding: nn.Module | None = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return None
    return embedding


def _callable_with_tokens(model: nn.Module, layers: Sequence[MoELayer], embedding: nn.Module | None) -> Iterator[nn.Module]:
    parents = [set(names_above(layer.name)) for layer in layers]
    names = {"", *set.intersection(*parents)}
    for name, module in model.named_modules():
        if module is embedding:
            names.update(names_above(name))
    modules = dict(model.named_modules())
    yield from (modules[name] for name in sorted(names, key=len) if type(modules[name]).forward is not nn.Module.forward)


def _together(calls: Sequence[Call], batch: int, num_tokens: int) -> Call:
    """The innermost call, which carries most, with the padding mask of an outer one if it has none."""
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
