"""What was compared of packed checkpoints, from the tests that compare it: `python -m tests.packed.support_matrix`.

It runs them, notes with what each checkpoint was loaded and held against what, and writes docs/packed_experts.md. A checkpoint of
which a test fails gets no row. `--collect` only counts the tests.
"""

import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from finemoe.errors import FinemoeError
from finemoe.paths import ROOT
from finemoe.runtime.quantization import OTHERS, require_known
from tests.packed.checkpoints import Made, compressed_tensors
from tests.packed.gguf_files import Content

PAGE = ROOT / "docs" / "packed_experts.md"
MARKS = ("<!-- support matrix: begin -->", "<!-- support matrix: end -->")
FILES = ("tests/packed/test_bit_equal.py", "tests/packed/test_gguf.py")
ALIKE = {"test_tiers_slots_and_devices": "FEW"}  # tests that go through several checkpoints, by what lists these
BLOCKS = "test_every_type_of_block_is_unpacked_as_the_gguf_package_does"
BESIDES = {  # what tests compare besides outputs
    "test_records_hold_what_the_checkpoint_has": "records' bytes",
    "test_records_hold_the_files_own_bytes": "records' bytes",
    "test_whole_models_are_unpacked_alike": "all weights",
    "test_both_references_are_one": "both references",
}
OPTIONS: dict[str, Callable[[Any], str]] = {
    "slots": lambda value: f"{value} slots",
    "devices": lambda value: f"{value} devices",
    "host_memory": lambda value: "disk tier",
    "grouped_from": lambda value: "grouped",
    "asynchronous": lambda value: "synchronous",
    "link": lambda value: "paced link",
}
DTYPES = {"auto": "auto", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
FAMILIES = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "qwen35moe": "qwen3_5_moe"}  # as Transformers calls them
SCALES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.uint8: "uint8 (exponents)",
    torch.float8_e8m0fnu: "e8m0",
}


@dataclass
class Row:
    """What is known of one checkpoint.

    Attributes:
        outcomes: numbers of tests "collected", "passed", "failed", "skipped". reasons: of skips, by test.
        memories, policies, dtypes, options: of the loads whose outputs were compared. references: by type of weights, whose they
            are: "Transformers" or "ours". besides: what else was compared.
        details: its format, and what there is to say of it.
    """

    family: str = ""
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, str] = field(default_factory=dict)
    memories: set[Any] = field(default_factory=set)
    policies: set[str] = field(default_factory=set)
    dtypes: set[str] = field(default_factory=set)
    options: set[str] = field(default_factory=set)
    references: dict[str, str] = field(default_factory=dict)
    besides: set[str] = field(default_factory=set)
    details: tuple[str, str] = ("", "")


class Watcher:
    """A plugin of pytest that keeps to the tests of checkpoints and notes what they do.

    Attributes:
        rows: by checkpoint; blocks: outcomes by type of GGUF block, of the tests that unpack blocks alone.
    """

    def __init__(self, is_run: bool) -> None:
        self.rows: dict[str, Row] = {}
        self.blocks: dict[str, Counter[str]] = {}
        self._is_run = is_run
        self._items: dict[str, pytest.Function] = {}
        self._current: pytest.Function | None = None
        self._asked: str | None = None  # the type of weights of the reference that is being made

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Function]) -> None:
        """Keep what concerns a checkpoint, or a type of block."""
        for item in items:
            for outcomes in self._outcomes(item):
                outcomes["collected"] += 1
                self._items[item.nodeid] = item
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self._items])
        items[:] = [item for item in items if item.nodeid in self._items]
        if self._is_run:
            for module in {item.module for item in items}:
                self._watch(module)

    def pytest_runtest_setup(self, item: pytest.Function) -> None:
        """Remember whose loads are to come."""
        self._current = item

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note an outcome."""
        item = self._items[report.nodeid]
        if report.passed and report.when != "call":
            return
        for outcomes in self._outcomes(item):
            outcomes[report.outcome] += 1
        for name in checkpoints_of(item):
            if report.passed and item.originalname in BESIDES:
                self.rows[name].besides.add(BESIDES[item.originalname])
            if report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                self.rows[name].reasons[item.name] = reason.removeprefix("Skipped: ")

    def describe(self) -> None:
        """Say of each checkpoint what it holds."""
        for module in dict.fromkeys(item.module for item in self._items.values()):
            for name in (name for name in module.CASES if name in self.rows):
                row = self.rows[name]
                if hasattr(module, "make"):
                    with tempfile.TemporaryDirectory() as folder:
                        row.family, row.details = of_folder(module.make(name, Path(folder)))
                else:
                    row.family, row.details = FAMILIES.get(name.split()[0], name.split()[0]), of_file(module.CASES[name]())

    def _outcomes(self, item: pytest.Function) -> list[Counter[str]]:
        """The counts in which a test is one."""
        if item.originalname == BLOCKS:
            return [self.blocks.setdefault(item.callspec.params["kind"].name, Counter())]
        return [self.rows.setdefault(name, Row()).outcomes for name in checkpoints_of(item)]

    def _watch(self, module: ModuleType) -> None:
        compare, reference = module.assert_loads_equal, module.reference

        def compared(found: Any, memory: Any, policy: str, dtype: str = "auto", **options: Any) -> None:
            compare(found, memory, policy, dtype, **options)
            assert self._current is not None
            told = self._current.callspec.params.get("memory", memory)
            for name in checkpoints_of(self._current):
                row = self.rows[name]
                row.memories.add("bytes" if told == "bytes" else memory)
                row.policies.add(policy)
                row.dtypes.add(dtype)
                row.options |= {OPTIONS[key](value) for key, value in options.items() if key in OPTIONS}

        def asked(found: Any, dtype: str = "auto") -> Any:
            self._asked = dtype
            self._note("Transformers")
            try:
                return reference(found, dtype)
            finally:
                self._asked = None

        def by_hand(make: Callable[..., Any]) -> Callable[..., Any]:
            def made(*args: Any, **options: Any) -> Any:
                self._note("ours")
                return make(*args, **options)

            return made

        module.assert_loads_equal, module.reference = compared, asked  # type: ignore[attr-defined]
        for name in [name for name in vars(module) if name == "naive" or name.endswith("_by_hand")]:
            setattr(module, name, by_hand(getattr(module, name)))

    def _note(self, whose: str) -> None:
        if self._asked is not None and self._current is not None:
            names = checkpoints_of(self._current)
            if len(names) == 1:
                self.rows[names[0]].references[self._asked] = whose


def checkpoints_of(item: pytest.Function) -> list[str]:
    """Which checkpoints a test is about."""
    if listed := ALIKE.get(item.originalname):
        return list(getattr(item.module, listed))
    name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
    return [name] if name in item.module.CASES else []


def of_folder(made: Made) -> tuple[str, tuple[str, str]]:
    """A checkpoint's family, its format, and details."""
    config = json.loads((made.folder / "config.json").read_text(encoding="utf-8"))
    told = config["quantization_config"]
    if told["quant_method"] == "fp8":
        form, block = "FP8", told["weight_block_size"]
        details = [f"blocks of {block[0]} × {block[1]}" if block else "one scale a matrix"]
        scales = {tensor.dtype for name, tensor in made.tensors().items() if name.endswith("_scale_inv")}
        details += [f"scales {SCALES[dtype]}" for dtype in scales]
        details += ["the last ones cut off"] if made.is_ragged else []
        details += ["one layer not packed"] if any(".experts" in name for name in told["modules_to_not_convert"]) else []
    elif told["quant_method"] == "mxfp4":
        form, details = "MXFP4", ["blocks of 32", "biases"]
    else:
        weights = told["config_groups"]["group_0"]["weights"]
        form, details = f"compressed-tensors int{weights['num_bits']}", [f"groups of {weights['group_size']}", "scales bf16"]
    num_files = len(list(made.folder.glob("*.safetensors")))
    return config["model_type"], (form, ", ".join(details + ([f"{num_files} files"] if num_files > 1 else [])))


def of_file(content: Content) -> tuple[str, str]:
    """A GGUF file's types of experts, and details."""
    is_expert = {name: "_exps" in name or bool(re.search(r"ffn_\w+\.\d+\.weight$", name)) for name in content.tensors}
    matrices = {name: kind.name for name, (kind, values) in content.tensors.items() if np.ndim(values) > 1}
    packed, rest = ({kind for name, kind in matrices.items() if is_expert[name] is told} for told in (True, False))
    details = [f"else {', '.join(sorted(rest))}"]
    details += ["tied"] if "output.weight" not in content.tensors else []
    details += ["a tensor an expert"] if any("_exps" not in name for name, is_one in is_expert.items() if is_one) else []
    return f"GGUF {', '.join(sorted(packed))}", ", ".join(details)


def watched(is_run: bool) -> tuple[Watcher, bool]:
    """The tests, run or only collected, and whether all went well."""
    watcher = Watcher(is_run)
    told = ["-q", "-p", "no:cacheprovider", "-W", "ignore", "--rootdir", str(ROOT), *(str(ROOT / file) for file in FILES)]
    with redirect_stdout(sys.stderr):
        code = pytest.main([*told, *([] if is_run else ["--collect-only"])], plugins=[watcher])
    return watcher, code == pytest.ExitCode.OK


def counts(watcher: Watcher) -> dict[str, int]:
    """Numbers of tests that were collected, by checkpoint and type of block."""
    both = {name: row.outcomes for name, row in watcher.rows.items()} | watcher.blocks
    return {name: outcomes["collected"] for name, outcomes in both.items()}


def counts_on(page: str) -> dict[str, int]:
    """The same as a page says it: of tests that passed or were left out."""
    found = inside(page)
    assert found is not None, f"{PAGE}: lacks the marks {MARKS}"
    rows = re.findall(r"^\| `(.+?)` \|.*\| (\d+)(?:, (\d+) left out)? \|$", found.group(1), re.MULTILINE)
    blocks = re.findall(r"`(\w+)` \((\d+)\)", found.group(1))
    return {name: int(passed) + int(skipped or 0) for name, passed, skipped in rows} | {name: int(one) for name, one in blocks}


def section(watcher: Watcher) -> str:
    """The matrix as Markdown, of what passed."""
    rows = {name: row for name, row in watcher.rows.items() if is_whole(row.outcomes)}
    blocks = {name: outcomes for name, outcomes in watcher.blocks.items() if is_whole(outcomes)}
    lines = [
        f"{len(rows)} tiny checkpoints with random weights and {sum(row.outcomes['passed'] for row in rows.values())} tests (a "
        "test that covers several checkpoints counts once for each), on a CPU with Transformers "
        f"{transformers.__version__}, torch {torch.__version__.split('+')[0]} and gguf {version('gguf')}. Outputs are always "
        "compared bit for bit: the logits of a left-padded batch's prefill, its greedy tokens with all their logits, and the "
        "same for a single prompt. *Reference*: the checkpoint dequantised as a whole by Transformers and run with eager experts "
        "(for GGUF, with the widths that the file states). `ours` is Transformers' plain model with weights unpacked "
        "independently of finemoe, value by value in NumPy or by the gguf package; it is used where Transformers reads them "
        "otherwise or builds no model that runs. *Cache*: shares of all experts; `bytes` has room for three experts and one "
        "unpacked. *Types*: types of the computing weights; `auto` is the checkpoint's. *Policies*: their number.",
        "",
        "| checkpoint | family | experts in | details | reference | cache | types | policies | options | also compared | tests |",
        "|---|---|---|---|---|---|---|---:|---|---|---:|",
        *(_row(name, row) for name, row in rows.items()),
        "",
        *(f"Left out: `{name}`, {_reasons(name, row)}.\n" for name, row in rows.items() if row.reasons),
        "GGUF block types, each unpacked alone and compared with the gguf package's result in fp32, bf16 and fp16, including the "
        "signs of zeros (number of tests): " + ", ".join(f"`{name}` ({one['passed']})" for name, one in blocks.items()) + ".",
        "",
        *refused(),
    ]
    return "\n".join(lines)


def is_whole(outcomes: Counter[str]) -> bool:
    """Whether all tests passed, but for those that were left out, and some did."""
    return outcomes["collected"] == outcomes["passed"] + outcomes["skipped"] and outcomes["passed"] > 0


def _row(name: str, row: Row) -> str:
    memories = [*sorted(one for one in row.memories if one != "bytes"), *(one for one in row.memories if one == "bytes")]
    skipped = row.outcomes["skipped"]
    cells = [
        f"`{name}`",
        row.family,
        *row.details,
        _references(row.references),
        ", ".join(map(str, memories)),
        ", ".join(short for long, short in DTYPES.items() if long in row.dtypes),
        str(len(row.policies)),
        ", ".join(sorted(row.options)),
        ", ".join(sorted(row.besides)),
        f"{row.outcomes['passed']}" + (f", {skipped} left out" if skipped else ""),
    ]
    return "| " + " | ".join(cells) + " |"


def _references(found: dict[str, str]) -> str:
    """By type only where these differ."""
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    own = ", ".join(short for long, short in DTYPES.items() if found.get(long) == "ours")
    return f"Transformers; ours in {own}"


def _reasons(name: str, row: Row) -> str:
    cases = [re.sub(rf"^\w+\[(?:{re.escape(name)}-)?|\]$", "", case) for case in row.reasons]
    return f"{', '.join(cases)}: {'; '.join(dict.fromkeys(row.reasons.values()))}"


def refused() -> Iterable[str]:
    """What is refused, with the reasons that the refusals give."""
    methods: dict[str, list[str]] = {}
    for method in (*sorted(OTHERS), "any other"):
        methods.setdefault(reason_of({"quant_method": method}), []).append(method)
    yield "| refused | reason |"
    yield "|---|---|"
    for reason, names in methods.items():
        yield f"| {', '.join(name if name == 'any other' else f'`{name}`' for name in names)} | {reason} |"
    for name, told in REFUSED_KINDS.items():
        yield f"| {name} | {reason_of(told)} |"


def _groups(**changes: Any) -> dict[str, Any]:
    told = compressed_tensors(4, 32)
    return told | {"config_groups": {"group_0": told["config_groups"]["group_0"] | {"weights": WEIGHTS | changes}}}


WEIGHTS = compressed_tensors(4, 32)["config_groups"]["group_0"]["weights"]
REFUSED_KINDS = {
    "`compressed-tensors`, `nvfp4-pack-quantized`": compressed_tensors(4, 16, format="nvfp4-pack-quantized"),
    "`compressed-tensors`, asymmetric": _groups(symmetric=False),
    "`compressed-tensors`, several kinds of groups": compressed_tensors(
        4,
        32,
        config_groups={f"group_{bits}": {"targets": ["Linear"], "weights": WEIGHTS | {"num_bits": bits}} for bits in (4, 8)},
    ),
    "`fp8`, `activation_scheme` static": {"quant_method": "fp8", "activation_scheme": "static"},
}


def reason_of(told: dict[str, Any]) -> str:
    """Why a quantisation is refused."""
    try:
        require_known(told, "")
    except FinemoeError as error:
        reason = str(error).removeprefix(": ").removeprefix(f"its weights are quantised by {told['quant_method']}: ")
        return reason.rsplit("; ", 1)[0]
    raise AssertionError(f"{told} is not refused")


def inside(page: str) -> re.Match[str] | None:
    """What stands between a page's marks."""
    return re.search(re.escape(MARKS[0]) + "\n(.*\n|)" + re.escape(MARKS[1]), page, re.DOTALL)


def main(told: list[str]) -> int:
    """Run the tests and write the page, or print how many there are."""
    if told == ["--collect"]:
        watcher, is_well = watched(is_run=False)
        print(json.dumps(counts(watcher)))
        return 0 if is_well else 1
    torch.set_num_threads(1)
    watcher, is_well = watched(is_run=True)
    watcher.describe()
    table = section(watcher)
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    found = inside(page)
    assert found is not None, f"{PAGE}: lacks the marks {MARKS}"
    PAGE.write_text(page[: found.start(1)] + table + "\n" + page[found.end(1) :], encoding="utf-8")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
