"""How long iterations took, counted where that is a time to the first token or a time per token."""

from finemoe.report import Counters
from finemoe.runtime.phases import Forward, Phase


class Durations:
    """Puts an iteration's duration where it belongs; a prompt that is fed in pieces is one prefill.

    Args:
        counters: where it is counted.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._prefills_s: dict[int, float] = {}  # how long its prefill took, of requests that ran nothing since

    def reset(self) -> None:
        """Forget prefills; what is fed of their prompts from now on is nothing known."""
        self._prefills_s.clear()

    def count(self, forward: Forward, duration_s: float) -> None:
        """An iteration has ended."""
        counters, phase, request = self._counters, forward.phase, forward.request
        prefill_s = self._prefills_s.pop(request, None)
        if prefill_s is not None and phase in (Phase.PIECE, Phase.SEVERAL):  # several may be the rest of its prompt, or drafts
            counters.correct_prefill(prefill_s, duration_s if phase is Phase.PIECE else None)
        if phase is Phase.PREFILL:
            counters.count_prefill(duration_s)
            self._prefills_s[request] = duration_s
        elif phase is Phase.PIECE and prefill_s is not None:
            self._prefills_s[request] = prefill_s + duration_s
        elif phase is Phase.DECODE:
            counters.count_decode_step(duration_s)
        else:  # also a piece whose beginning was not seen, or before a reset
            counters.num_decode_steps += phase is Phase.SEVERAL
            counters.num_unknown_steps += 1
