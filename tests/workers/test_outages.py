"""An outage is told when it begins, once a minute, and when it is over."""

from workers.outages import AGAIN_S, Outages
from workers.progress_bars import lines


class Clock:
    def __init__(self):
        self.at = 1000.0

    def __call__(self):
        return self.at


def test_an_outage_is_told_once_then_once_a_minute_then_when_it_is_over():
    clock = Clock()
    outages = Outages(clock)
    assert outages.to_tell() is None
    told = []
    for _ in range(75):  # two and a half minutes, looked at every two seconds
        for station in ("line-1/top", "line-1/side"):
            outages.fails(station, "away")
        told.append(outages.to_tell())
        clock.at += 2
    everybody = {"line-1/top": "away", "line-1/side": "away"}
    assert [t for t in told if t] == [(everybody, 0.0), (everybody, AGAIN_S), (everybody, 2 * AGAIN_S)]
    outages.works("line-1/top")
    assert outages.to_tell() is None, "the other one is still without"
    outages.works("line-1/side")
    assert outages.to_tell() == ({}, 150.0)
    assert outages.to_tell() is None
    outages.fails("line-1/top", "away again")
    assert outages.to_tell() == ({"line-1/top": "away again"}, 0.0), "another outage is told at once"


def test_a_log_gets_a_line_for_each_stage_and_one_every_ten_seconds():
    clock, written = Clock(), []
    told = lines(written.append, clock)
    for i in range(25):
        told("decode", i, 25)
        clock.at += 1
    told("decode", 25, 25)
    for i in range(3):
        told("coreset", i, 4000)
    assert written == ["decode: 0 of 25", "decode: 10 of 25", "decode: 20 of 25", "coreset: 0 of 4,000"]
