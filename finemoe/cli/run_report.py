"""What `finemoe run` prints after the text, and the exit code that it leaves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from finemoe.cli.answering import INTERRUPTED, LIMIT, Answer
from finemoe.cli.messages import INTERRUPTED as INTERRUPTED_CODE
from finemoe.cli.printing import counted, print_json, print_table

_ENDS = {LIMIT: "all that --max-new-tokens allows", INTERRUPTED: "stopped by Ctrl-C"}


@dataclass(frozen=True)
class RunReport:
    """The end of a run.

    Args:
        answers: of all turns. report: the engine's. decoding: how tokens were chosen. start_s: time before the first token's.
        is_sampling_published: whether the checkpoint's own settings sample, but the run was greedy.
    """

    answers: list[Answer]
    report: Any
    decoding: str
    start_s: float
    is_sampling_published: bool

    @property
    def is_interrupted(self) -> bool:
        return bool(self.answers) and self.answers[-1].ended == INTERRUPTED

    def print_json(self) -> None:
        """One JSON value."""
        print_json(
            {
                "text": "\n".join(answer.text for answer in self.answers),
                "interrupted": self.is_interrupted,
                "new_tokens": sum(answer.num_new for answer in self.answers),
                "ended_by": self.answers[-1].ended,
                "decoding": self.decoding,
                "start_s": self.start_s,
                "report": self.report.to_dict(),
            }
        )

    def print_table(self, title: str, dtype: str | None, profile: Path | None, is_warm: bool, timeline: Path | None) -> None:
        """The text, unless it was shown as it came, and the counters.

        Args:
            dtype: of the weights, if the command chose it. profile: the file written; is_warm: whether it was read first.
        """
        for answer in self.answers:
            if not answer.is_shown:
                typer.echo(answer.text)
        published = "  (published: --sample)" if self.is_sampling_published else ""
        rows = [("decoding", self.decoding + published), ("generated", self._generated()), *self.report.rows()]
        if dtype is not None:
            rows.append(("other weights", f"{dtype}  (as Transformers: --dtype float32)"))
        if profile is not None:
            rows.append(("profile", f"{profile}  ({'read, and' if is_warm else 'new,'} written)"))
        rows.append(("start", f"{self.start_s:.1f} s  (imports, loading, compiling; not part of TTFT)"))
        print_table(title, rows)
        if timeline is not None:
            typer.echo(f"{timeline}: timeline, for ui.perfetto.dev")

    def leave(self) -> None:
        """End with the exit code that shells expect after Ctrl-C."""
        if self.is_interrupted:
            raise typer.Exit(INTERRUPTED_CODE)

    def _generated(self) -> str:
        number = sum(answer.num_new for answer in self.answers)
        if len(self.answers) != 1:
            return f"{counted(number, 'token')} in {counted(len(self.answers), 'answer')}"
        return f"{counted(number, 'token')}, {_ENDS.get(self.answers[0].ended, 'up to the end of the text')}"
