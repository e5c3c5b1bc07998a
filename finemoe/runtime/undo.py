"""Reverts steps, even if errors or interrupts come in between."""

from collections.abc import Callable


class UndoStack:
    """A stack of steps that each revert something and may each run twice.

    A failing step does not keep the others from running. An interrupted step runs again, but only once more: it may hang, and a
    user who interrupts twice means it.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def push(self, step: Callable[[], object]) -> None:
        """Add a step that runs before the steps pushed earlier."""
        self._steps.append(step)

    def run(self) -> None:
        """Run every step once; the next call runs the steps that an interrupt left.

        Raises:
            BaseException: the interrupt, or else the error of the first step that failed.
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
