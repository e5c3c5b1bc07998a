"""What packed experts take at real geometry, from configurations alone: `python -m tests.packed.byte_table` prints the table and
writes it into docs/packed_experts.md."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finemoe.models.geometry import Geometry
from finemoe.paths import ROOT
from tests.models.packed_configs import gpt_oss_20b, qwen3_30b_a3b, qwen3_30b_a3b_fp8

PAGE = ROOT / "docs" / "packed_experts.md"
MARKS = ("<!-- bytes: written by `python -m tests.packed.byte_table` -->", "<!-- end of bytes -->")
_GIB = 2**30
_BF16_BYTES = 2


@dataclass(frozen=True)
class Case:
    """A model with its experts packed in one way.

    Attributes:
        model, packed: names for people; fields: its configuration's. mix: of GGUF; None is what the configuration says.
    """

    model: str
    packed: str
    fields: Callable[[], dict[str, Any]]
    mix: str | None = None


CASES = (
    Case("gpt-oss-20b", "MXFP4", gpt_oss_20b),
    Case("Qwen3-30B-A3B", "FP8", qwen3_30b_a3b_fp8),
    Case("Qwen3-30B-A3B", "GGUF Q4_K_M", qwen3_30b_a3b, "Q4_K_M"),
)


@dataclass(frozen=True)
class Bytes:
    """What experts take.

    Attributes:
        record: of one in host memory, on disk and over the link, the mean where layers differ. slot: on the device, the largest.
        records: of all in host memory, on disk, and over the link once; slots: of all on the device. token: over the link for
            one token that finds nothing there. weights: of the whole model, all but experts in bf16.
    """

    record: float
    slot: int
    records: int
    slots: int
    token: float
    weights: int

    @classmethod
    def of(cls, geometry: Geometry, record: float, slot: int, records: int) -> "Bytes":
        """Of a model of that geometry, with experts of these sizes."""
        count = geometry.num_layers * geometry.num_experts
        rest = _BF16_BYTES * (geometry.total_params - count * geometry.expert_params)
        token = geometry.num_layers * geometry.experts_per_token * record
        return cls(record, slot, records, count * slot, token, rest + records)


def packed_and_plain(case: Case) -> tuple[Bytes, Bytes]:
    """A case, and the same model in bf16."""
    geometry = Geometry.from_config(case.fields(), case.mix)
    count = geometry.num_layers * geometry.num_experts
    packed = Bytes.of(geometry, geometry.all_experts_bytes / count, geometry.expert_bytes, geometry.all_experts_bytes)
    plain = geometry.unpacked_expert_bytes
    return packed, Bytes.of(geometry, plain, plain, count * plain)


def section() -> str:
    """The table as Markdown."""
    lines = [
        "| model | experts in | one record (link, host, disk) | one slot (device) | all records (host, disk) "
        "| all slots (device) | one token's loads (link) | all weights |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    shown: set[str] = set()
    for case in CASES:
        packed, plain = packed_and_plain(case)
        if case.model not in shown:
            lines.append(_row(case.model, "bf16", plain))
        lines += [_row(case.model, case.packed, packed), _shares(packed, plain)]
        shown.add(case.model)
    return "\n".join(lines)


def _row(model: str, form: str, size: Bytes) -> str:
    expert = [f"{round(size.record):,}", f"{size.slot:,}"]
    whole = [f"{value / _GIB:.2f} GiB" for value in (size.records, size.slots, size.token, size.weights)]
    return "| " + " | ".join([model, form, *expert, *whole]) + " |"


def _shares(packed: Bytes, plain: Bytes) -> str:
    pairs = zip(vars(packed).values(), vars(plain).values(), strict=True)
    return "| | of bf16 | " + " | ".join(f"{one / other:.3f}" for one, other in pairs) + " |"


def inside(page: str) -> re.Match[str] | None:
    """What stands between a page's marks."""
    return re.search(re.escape(MARKS[0]) + "\n(.*)\n" + re.escape(MARKS[1]), page, re.DOTALL)


def main() -> None:
    """Print the table, and write it into the page."""
    table = section()
    print(table)
    page = PAGE.read_text(encoding="utf-8")
    found = inside(page)
    assert found is not None, f"{PAGE}: lacks the marks {MARKS}"
    PAGE.write_text(page[: found.start(1)] + table + page[found.end(1) :], encoding="utf-8")


if __name__ == "__main__":
    main()
