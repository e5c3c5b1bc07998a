"""Beginnings and ends at bad moments: an interrupt while an engine is attached, a process that ends while a thread generates."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

import finemoe
from finemoe.paths import ROOT
from finemoe.runtime.worker import Worker
from tests.runtime.models import build, padded_batch
from tests.runtime.recordings import Characters
from tests.runtime.test_interrupts import facts_of

RECORDING = {"recorder.py", "tape.py", "following.py", "observer.py", "lookahead.py", "interrupts.py"}


class SignalAt:
    """Sends this process an interrupt at the n-th line of what records, once."""

    def __init__(self, at: int) -> None:
        self.remaining = at

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename.rsplit("/", 1)[-1] not in RECORDING or "finemoe" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.remaining -= 1
            if self.remaining == 0:
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return self


def test_an_interrupt_anywhere_in_recording_leaves_the_model_as_it_was():
    model, options = build("mixtral"), {"tokenizer": Characters(), "max_new_tokens": 2, "lookahead": (1,)}
    expected = finemoe.record(model, ["ab"], **options)
    before, at, step = facts_of(model), 1, 0
    previous = sys.gettrace()
    while True:
        sys.settrace(SignalAt(at))
        try:
            finemoe.record(model, ["ab"], **options)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(previous)
        assert facts_of(model) == before, f"line {at}"
        step += 1
        at += 1 + at // 25
    assert step > 50
    again = finemoe.record(model, ["ab"], **options)
    assert (again.tokens == expected.tokens).all()
    assert (again.probs == expected.probs).all()


def test_attributes_that_are_only_called_like_hooks_are_no_hindrance():
    model = build("mixtral")
    model.gradient_checkpointing_enable()  # notes hooks of its own in a list
    model.my_hooks = ["one"]
    with torch.no_grad():
        expected = model(**padded_batch(1)).logits
        with finemoe.offload(model, 0.3):
            assert torch.equal(model(**padded_batch(1)).logits, expected)
    assert model.my_hooks == ["one"]


@pytest.mark.parametrize("layer", [0, 3])
def test_a_signal_while_the_experts_are_taken(layer, monkeypatch):
    from finemoe.runtime import takeover

    model, batch, empty = build("mixtral"), padded_batch(1), takeover.empty
    with torch.no_grad():
        expected = model(**batch).logits

    def interrupted(one, device):
        if one.index == layer:
            signal.raise_signal(signal.SIGINT)
        empty(one, device)

    monkeypatch.setattr(takeover, "empty", interrupted)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            finemoe.offload(model, 0.3)
    finally:
        signal.signal(signal.SIGINT, previous)
    monkeypatch.undo()
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)


def test_a_wait_that_a_signal_cuts_short_is_waited_again():
    """CPython 3.11 and 3.12 would take the thread for ended."""
    go_on = threading.Event()
    worker = Worker("finemoe-test", "the test")
    worker.join()  # one that was never started has nothing to wait for
    worker.start()
    worker.do(go_on.wait)
    previous = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.close()
    finally:
        signal.signal(signal.SIGALRM, previous)
    worker.join(0.01)
    assert worker.is_alive
    go_on.set()
    worker.join()
    assert not worker.is_alive


PROGRAM = """
import threading, torch, finemoe
from finemoe.errors import EngineError
from tests.runtime.models import build
model = build("mixtral")
expected = model.generate(torch.arange(3, 15)[None], max_new_tokens=30, min_new_tokens=30, do_sample=False)
engine = finemoe.offload(model, 0.3, {options})
begun, lives = threading.Event(), {lives}
def serve():
    for _ in range({rounds}):
        try:
            found = model.generate(torch.arange(3, 15)[None], max_new_tokens=30, min_new_tokens=30, do_sample=False)
            assert torch.equal(found, expected)
        except EngineError as error:
            print("heard:", error, flush=True)
            if not lives:
                raise
        begun.set()
    print("served all", flush=True)
threading.Thread(target=serve, daemon={daemon}).start()
begun.wait(60)
{drop}
"""


def run(**parts) -> subprocess.CompletedProcess:
    given = {"options": "", "rounds": 10**6, "daemon": True, "drop": "", "lives": False, **parts}
    program = textwrap.dedent(PROGRAM).format(**given)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.parametrize(
    "parts",
    [
        {"options": "'finemoe'"},
        {"options": "'on-demand'"},
        {"options": "'finemoe', host_memory=0, link='paced:200MB/s'"},
        {"options": "'finemoe', asynchronous=False", "drop": "del engine"},
        {"options": "'on-demand'", "lives": True},
    ],
    ids=str,
)
def test_a_thread_that_generates_while_the_process_ends_hears_one_clear_error(parts):
    begin_s = time.monotonic()
    ended = run(**parts)
    assert ended.returncode == 0
    heard = [line for line in ended.stdout.splitlines() if line.startswith("heard:")]
    assert heard, ended
    assert all("the process is ending" in line for line in heard)
    for foreign in ("IndexError", "KeyError", "RuntimeError", "AssertionError", "Fatal", "Segmentation"):
        assert foreign not in ended.stderr
    assert time.monotonic() - begin_s < 110


@pytest.mark.parametrize("options", ["'finemoe'", "'finemoe', host_memory=0"])
def test_a_thread_that_is_no_daemon_is_waited_for(options):
    """With experts on disk, too, though pools of threads take no work once the main thread has ended."""
    ended = run(options=options, rounds=3, daemon=False)
    assert (ended.returncode, ended.stdout, "Error" in ended.stderr) == (0, "served all\n", False), ended


COLD = """
import numba, torch, finemoe
from finemoe.maps import kernels
from finemoe.policies import predictors
from tests.runtime.models import build
model = build("mixtral")
def compiled():
    return {{(name, str(one)) for module in (kernels, predictors) for name, function in vars(module).items()
             if hasattr(function, "signatures") for one in function.signatures}}
engine = finemoe.offload(model, 0.3, {policy!r})
before = compiled()
for _ in range(3):
    model.generate(torch.arange(3, 15)[None], max_new_tokens=6, min_new_tokens=6, do_sample=False)
engine.report()
print(sorted(compiled() - before), len(before))
"""


@pytest.mark.parametrize("policy", ["finemoe", "promoe", "mixtral-offloading"])
def test_no_first_token_waits_for_a_compiler(policy):
    ended = subprocess.run(
        [sys.executable, "-c", COLD.format(policy=policy)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    new, count = ended.stdout.split()
    assert (new, int(count) > 0) == ("[]", True), ended
