"""Takes back what was done, whatever comes in between."""

from collections.abc import Callable


class UndoStack:
    """Steps that take something back, each of which may be done twice.

    What fails does not keep the others from being done. A step that an interrupt breaks off is done again, but not a second time:
    it may hang, and whoever interrupts twice means it.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def push(self, step: Callable[[], object]) -> None:
        """Have a step done before those that were pushed earlier."""
        self._steps.append(step)

    def run(self) -> None:
        """Do every step once; what is left after an interrupt is done by the next call.

        Raises:
            BaseException: what an interrupt was, or else what the first step that failed said.
        """
        raised: BaseException | None = None
        broken_off: Callable[[], object] | None = None
        while self._steps:
            step = self._steps[-1]
            try:
                step()
            except Exception as error:
                raised = raised or error
            except BaseException as interrupt:
                raised = interrupt
                if broken_off is not step:
                    broken_off = step
                    continue
            self._steps.pop()
        if raised is not None:
            raise raised
