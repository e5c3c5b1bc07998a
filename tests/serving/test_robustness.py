"""200 requests from ten clients, some of which hang up or send nonsense: nothing wrong, nothing left behind."""

import pytest

from tests.serving.storm import Storm, left_behind


@pytest.mark.timeout(120)
def test_a_storm(live):
    storm = Storm(live)
    storm.run(20, 10)
    before = left_behind(live)
    storm.run(180, 10)
    assert storm.wrong == []
    assert sum(storm.outcomes.values()) == 200
    assert len(storm.outcomes) == 6
    after, report = left_behind(live), live.engine.report()
    assert after == before
    assert report.accesses == report.hits + report.late + report.misses
    assert after["slots"][0] == after["slots"][1]
    assert live.http.get("/health").json() == {"status": "ok"}
