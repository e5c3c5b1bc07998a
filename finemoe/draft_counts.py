"""What became of the tokens that a live run drafted and then verified (docs/metrics.md defines them)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DraftCounts:
    """Drafts that decode steps verified. What became of a step's drafts is known when its cache is fed again; the last step of a
    generation stays open.

    Attributes:
        num_steps: decode steps that verified drafts. num_open_steps: those whose drafts have an unknown fate.
        num_drafts, num_accepted: drafts of the other steps, and how many of them were accepted.
        rejected_accesses, rejected_bytes: experts that only rejected drafts selected, also if fed with a prompt, and bytes loaded
            on demand for them; no other count has them.
    """

    num_steps: int = 0
    num_open_steps: int = 0
    num_drafts: int = 0
    num_accepted: int = 0
    rejected_accesses: int = 0
    rejected_bytes: int = 0

    def plus(self, other: "DraftCounts") -> "DraftCounts":
        """The sums of both."""
        return DraftCounts(*(mine + its for mine, its in zip(self.numbers, other.numbers, strict=True)))

    def minus(self, other: "DraftCounts") -> "DraftCounts":
        """The differences of both."""
        return DraftCounts(*(mine - its for mine, its in zip(self.numbers, other.numbers, strict=True)))

    @property
    def numbers(self) -> tuple[int, ...]:
        """All counts, in their order."""
        return tuple(vars(self).values())

    def tokens_per_step(self, num_decode_steps: int) -> float:
        """Mean number of tokens that a decode step generates for a sequence, over the steps for which it is known."""
        num_known = num_decode_steps - self.num_open_steps
        return 1 + self.num_accepted / num_known if num_known > 0 else float("nan")


NO_DRAFTS = DraftCounts()
