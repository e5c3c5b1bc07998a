"""A compiled kernel works whatever state Numba's cache is in: nowhere to write, damaged, full, another user's."""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numba
import pytest
from numba.core import caching

from finemoe import uncached
from finemoe.paths import ROOT

KERNEL = """
from finemoe.compiling import njit

@njit(cache=True)
def double(number):
    return 2 * number
"""
WHOLE = """
import json
import numpy as np, torch, finemoe
from transformers import MixtralConfig, MixtralForCausalLM

torch.set_grad_enabled(False)
trace = finemoe.RoutingTrace.from_topk(np.tile([[[0, 1], [2, 3]]], (6, 1, 1)), np.full((6, 2, 2), 0.5), [0, 6], 4)
report = finemoe.replay(trace, "on-demand", 0.5)
config = MixtralConfig(
    vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)
model = MixtralForCausalLM(config).eval()
tokens = torch.arange(5)[None]
expected = model(tokens).logits
with finemoe.offload(model, 0.5, "promoe"):
    is_equal = torch.equal(model(tokens).logits, expected)
print(json.dumps([report.accesses, is_equal]))
"""


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    """Every test decides itself where a cache may be, and hears the warning that a process hears once."""
    monkeypatch.setattr(uncached, "_has_warned", False)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)


def loaded(folder: Path):
    """The kernel as a process that starts now would have it."""
    path = folder / "some_kernels.py"
    path.write_text(KERNEL)
    spec = importlib.util.spec_from_file_location("some_kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.double


def hits(function) -> int:
    return sum(function.stats.cache_hits.values())


def doubled_in_silence(function) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(21)


def doubled_with_one_line(folder: Path) -> str:
    """The one warning of two kernels, neither of which can be kept."""
    with pytest.warns(RuntimeWarning) as caught:
        assert [loaded(folder)(21), loaded(folder)(21)] == [42, 42]
    assert len(caught) == 1
    line = warnings.formatwarning(caught[0].message, caught[0].category, caught[0].filename, caught[0].lineno)
    assert line.count("\n") == 1
    return line


def block(folder: Path) -> None:
    """Nothing can be written beside the source, root or not."""
    (folder / "__pycache__").write_text("")


def test_a_kernel_is_kept_beside_its_source(tmp_path):
    assert doubled_in_silence(loaded(tmp_path)) == 42
    again = loaded(tmp_path)
    assert doubled_in_silence(again) == 42
    assert hits(again) == 1


@pytest.mark.parametrize("what", ["cut short", "empty", "overwritten", "of no pickle"])
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_damaged_file_is_written_anew(tmp_path, what, suffix):
    loaded(tmp_path)(21)
    (file,) = (tmp_path / "__pycache__").glob(f"*.{suffix}")
    content = file.read_bytes()
    damaged = {
        "cut short": content[: len(content) // 2],
        "empty": b"",
        "overwritten": bytes(len(content)),
        "of no pickle": b"damaged" * 100,
    }
    file.write_bytes(damaged[what])
    found = loaded(tmp_path)
    assert (doubled_in_silence(found), hits(found)) == (42, 0)
    mended = loaded(tmp_path)
    assert (doubled_in_silence(mended), hits(mended)) == (42, 1)


def test_an_index_that_cannot_be_replaced(tmp_path):
    loaded(tmp_path)(21)
    (index,) = (tmp_path / "__pycache__").glob("*.nbi")
    index.unlink()
    index.mkdir()
    assert "Error: [Errno" in doubled_with_one_line(tmp_path)


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching.IndexDataCacheFile, "_open_for_write", full)
    assert "No space left on device" in doubled_with_one_line(tmp_path)


def test_no_folder_that_can_be_written(tmp_path, monkeypatch):
    block(tmp_path)
    monkeypatch.setenv("HOME", "/dev/null")
    assert "set NUMBA_CACHE_DIR to a writable folder" in doubled_with_one_line(tmp_path)


@pytest.mark.parametrize("setting", ["a file", "below a file", "missing", "relative", "relative to a folder that is gone"])
def test_a_folder_named_by_the_user(tmp_path, monkeypatch, setting):
    (tmp_path / "file").write_text("")
    (tmp_path / "gone").mkdir()
    named = {"a file": "file", "below a file": "file/cache", "missing": "new/cache"}
    monkeypatch.chdir(tmp_path / "gone" if "gone" in setting else tmp_path)
    if "gone" in setting:
        (tmp_path / "gone").rmdir()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / named[setting]) if setting in named else "cache")
    assert doubled_in_silence(loaded(tmp_path)) == 42
    again = loaded(tmp_path)
    assert (doubled_in_silence(again), hits(again)) == (42, 1)


def test_what_was_compiled_at_installation_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    loaded(tmp_path)(21)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(caching.tempfile, "TemporaryFile", refuse)
    found = loaded(tmp_path)
    assert (doubled_in_silence(found), hits(found)) == (42, 1)


@pytest.mark.parametrize("setting", ["NoSuchLocator", "no_such_module.Locator", "UserProvidedCacheLocator"])
def test_a_setting_that_names_no_place(tmp_path, monkeypatch, setting):
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", setting)
    assert "RuntimeError" in doubled_with_one_line(tmp_path)


def test_nothing_is_said_of_a_cache_where_numba_is_told_not_to_compile(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    assert doubled_in_silence(loaded(tmp_path)) == 42


def test_a_numba_that_caches_otherwise(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "finemoe.kernel_cache", None)
    assert "cannot be kept" in doubled_with_one_line(tmp_path)


@pytest.mark.timeout(300)  # compiles every kernel
def test_everything_works_for_a_user_without_a_home(tmp_path):
    """From an installation that nobody can write to: live and replayed, with one line about it."""
    package = shutil.copytree(ROOT / "finemoe", tmp_path / "finemoe", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        block(folder)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_CACHE", "XDG_"))}
    environment |= {"HOME": "/nonexistent/home" if os.getuid() else "/dev/null", "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", WHOLE], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [24, True]
    assert done.stderr.count("\n") == done.stderr.count("compiled kernels cannot be kept") == 1


CALLS = {
    "arrays": ("np.zeros(number).sum()", "", False),
    "a list": ("[number][np.int64(number > 5)]", "", False),
    "hashes": ("len({str(number), 'more'})", "", False),
    "threads": ("np.ones((number, number)).sum()", ", parallel=True", True),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_kernel_from_the_cache_finds_what_it_calls(tmp_path, call):
    """In a process that compiles nothing, which gets ready to compile only where the kernel calls what nobody has announced."""
    expression, option, needs_more = CALLS[call]
    lines = ["import numpy as np", "from finemoe.compiling import njit", f"@njit(cache=True{option})", "def count(number):"]
    (tmp_path / "counting.py").write_text("\n".join([*lines, f"    return {expression}", ""]))
    program = (
        "import sys, counting; found = counting.count(3); "
        "print(found, sum(counting.count.stats.cache_hits.values()), 'numba.typed.dictimpl' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    run = lambda: subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)  # noqa: E731
    compiled, loaded = run(), run()
    found, hits, is_ready = loaded.stdout.split()
    assert compiled.stdout.split() == [found, "0", "True"], compiled.stderr
    assert (hits, is_ready) == ("1", str(needs_more))
