"""Work that is done at once or beside: nothing is overtaken, nothing is waited for that takes long, and failures are heard of."""

import threading
import time

import pytest

from finemoe.errors import EngineError
from finemoe.runtime.worker import ThriftyWorker

LONG_S = 0.05  # many times what handing over takes


@pytest.fixture
def worker():
    made = ThriftyWorker("finemoe-test", "the test")
    made.start()
    yield made
    made.close()


def here() -> str:
    return threading.current_thread().name


def test_what_is_known_to_be_short_is_done_at_once(worker):
    where: list[str] = []
    for _ in range(40):
        worker.do(lambda: where.append(here()), "short")
        worker.flush()
    assert where[0] == "finemoe-test", "of what is not known yet nobody can say that it is short"
    assert where[-1] == here()


def test_what_is_long_is_done_beside(worker):
    where: list[str] = []

    def work() -> None:
        time.sleep(LONG_S)
        where.append(here())

    for _ in range(20):
        worker.do(work, "long")
    worker.flush()
    assert where == ["finemoe-test"] * 20


@pytest.mark.parametrize("is_urgent", [True, False])
def test_what_nobody_waits_for_is_done_beside_unless_it_takes_less_than_a_trip(worker, is_urgent):
    worker._trip_s = LONG_S
    where: dict[str, list[str]] = {"short": [], "of a few trips": []}
    works = {"short": lambda: None, "of a few trips": lambda: time.sleep(3 * LONG_S)}
    for _ in range(4):
        for kind, work in works.items():
            worker.do(lambda kind=kind, work=work: (work(), where[kind].append(here())), kind, is_urgent=is_urgent)
            worker.flush()
    assert where["short"][1:] == [here()] * 3
    assert where["of a few trips"][1:] == [here() if is_urgent else "finemoe-test"] * 3


def test_what_is_done_later_is_kept_first_and_what_is_done_at_once_is_not(worker):
    kept: list[str] = []
    worker.do(lambda: kept.append("done"), "short", lambda: kept.append("kept"))
    worker.flush()
    assert kept == ["kept", "done"]
    worker._trip_s = LONG_S
    worker.do(lambda: kept.append("done"), "short", lambda: kept.append("kept"))
    assert kept == ["kept", "done", "done"]


def test_nothing_overtakes_what_was_given_before(worker):
    order: list[int] = []
    for number in range(300):
        pause_s = LONG_S if number % 100 == 50 else 0.0

        def work(number: int = number, pause_s: float = pause_s) -> None:
            time.sleep(pause_s) if pause_s else None
            order.append(number)

        worker.do(work, "long" if pause_s else "short")
    worker.flush()
    assert order == list(range(300))


def test_nobody_waits_long_for_what_had_been_short(worker):
    """Its time was known, and then it does not end."""
    worker._trip_s, trip_s = 0.0, worker._trip_s  # so that it is given away
    go_on, done = threading.Event(), []
    for _ in range(20):
        worker.do(lambda: None, "treacherous", is_urgent=False)
    worker.flush()
    worker.do(go_on.wait, "treacherous", is_urgent=False)
    worker._trip_s = trip_s
    worker.do(lambda: done.append(here()), "treacherous")  # comes back, though what was given before does not
    assert done == []
    go_on.set()
    worker.flush()
    assert done == ["finemoe-test"]


def test_a_failure_at_once_is_the_last_work_and_is_raised_as_one_beside(worker):
    done: list[int] = []
    for _ in range(40):
        worker.do(lambda: None, "short")
        worker.flush()

    def fail() -> None:
        raise ValueError("no")

    worker.do(fail, "short")
    worker.do(lambda: done.append(1), "short")
    worker.do(lambda: done.append(2), "not known yet")
    worker.close()
    assert done == []
    with pytest.raises(EngineError, match="the test failed: no") as raised:
        worker.check()
    assert isinstance(raised.value.__cause__, ValueError)


def test_what_an_interrupt_kept_from_being_given_is_not_waited_for(worker):
    for _ in range(40):
        worker.do(lambda: None, "short")
        worker.flush()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.do(lambda: None, "new", interrupt)
    assert list(worker._backlog) == [worker._num_given]  # of which nobody will ever say that it is done
    where: list[str] = []
    for _ in range(3):
        worker.do(lambda: where.append(here()), "short")
        worker.flush()
    assert where[-1] == here()
