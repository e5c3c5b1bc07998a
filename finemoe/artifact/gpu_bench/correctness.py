"""Bit-equality on this device: the miniatures under every policy, with copies delayed at random."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from finemoe.artifact.gpu_bench.bench import NotHere, Part
from finemoe.artifact.gpu_bench.delays import delay
from finemoe.artifact.gpu_bench.settings import Settings, is_fast_enough
from finemoe.artifact.machines.schema import Correctness
from finemoe.runtime.loading import load_model
from finemoe.runtime.offloading import offload

_DTYPE = "bfloat16"
_MEMORY = 0.25
_PROMPT = "How does a cache decide which of its entries to give up when a new one must come in?"
_SANITIZER = "compute-sanitizer"
_SANITIZED_STEPS = 4
_SANITIZER_S = 280.0
_FEWER = 10
_BEGIN_S, _STEP_S = 10.0, 0.5  # estimates: loading a model, and a step under all policies


def parts(settings: Settings, device: torch.device) -> Iterator[Part]:
    """One part per miniature."""
    for model in settings.checked_models:

        def run(model: str = model) -> list[Any]:
            return check(model, (*settings.policies, "no-offload"), settings.steps, device, settings.seed)

        seconds = _BEGIN_S + _STEP_S * settings.steps
        yield Part("correctness", model, seconds, run, is_of_code=True)


def last_parts(settings: Settings, device: torch.device) -> Iterator[Part]:
    """The same under compute-sanitizer, which is less important than the measurements."""
    yield Part("correctness", _SANITIZER, 120.0, lambda: sanitized(settings, device), is_of_code=True)


def check(name: str, policies: Sequence[str], steps: int, device: torch.device, seed: int) -> list[Correctness]:
    """Decode greedily with and without each policy and compare every step's logits; fewer steps if whole layers are loaded."""
    model, tokenizer = load_model(name, _DTYPE)
    model.to(device)
    tokens = tokenizer(_PROMPT, return_tensors="pt").input_ids.to(device)
    expected = _logits(model, tokens, steps)
    rows = []
    for policy in filter(is_fast_enough, policies):
        with offload(model, _MEMORY, policy, devices=device, seed=seed) as engine:
            delay(engine, seed)
            num_steps = max(1, steps // _FEWER) if engine.policy.loads_whole_layers else steps
            found = _logits(model, tokens, num_steps)
        different = sum(not torch.equal(one, other) for one, other in zip(expected, found, strict=False))
        rows.append(Correctness(name, _DTYPE, policy, _MEMORY, num_steps, different))
    return rows


@torch.inference_mode()
def _logits(model: Any, tokens: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Logits of the last position of every step, on the host."""
    cache, found = None, []
    for _ in range(steps):
        output = model(input_ids=tokens, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[:, -1]
        tokens = logits.argmax(-1, keepdim=True)
        found.append(logits.cpu())
    return found


def sanitized(settings: Settings, device: torch.device) -> list[Any]:
    """A few steps of every policy under NVIDIA's memory checker; an error it reports is a failure."""
    if device.type != "cuda":
        raise NotHere(f"{_SANITIZER} checks CUDA programs, and there is no CUDA device")
    tool = shutil.which(_SANITIZER)
    if tool is None:
        raise NotHere(f"{_SANITIZER} is not installed")
    code = f"from finemoe.artifact.gpu_bench.correctness import check_first; check_first({settings!r}, {_SANITIZED_STEPS})"
    code = f"from finemoe.artifact.gpu_bench.settings import Settings; {code}"
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that every tensor has separate bounds
    # Driver calls that return an error, such as queries for missing features, are not memory errors.
    command = [tool, "--report-api-errors", "no", "--error-exitcode", "9", sys.executable, "-c", code]
    status, printed = _run_whole(command, environment)
    if status:
        raise RuntimeError(f"{_SANITIZER} ended with {status}: {printed[-1000:]}")
    return [Correctness(settings.checked_models[0], _DTYPE, _SANITIZER, _MEMORY, _SANITIZED_STEPS, 0)]


def _run_whole(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a command; if this function is interrupted, every process that the command started is killed."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            printed, _ = process.communicate(timeout=_SANITIZER_S)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, printed


def check_first(settings: Settings, steps: int) -> None:
    """Check every policy on the first miniature and CUDA device; raises if a bit differs."""
    for row in check(settings.checked_models[0], settings.policies, steps, torch.device("cuda", 0), settings.seed):
        assert row.num_different_steps == 0, row
