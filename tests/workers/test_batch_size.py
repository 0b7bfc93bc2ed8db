"""How many to score together: what is in time stays in time, and where not all can be, as many as can."""

import pytest

from workers.batch_size import Candidate, Matters, Pace, back_s, fair, size_of


def linear(per_batch_s, each_s):
    return lambda size: per_batch_s + each_s * size


def of(*left_s):
    return [Candidate(each) for each in left_s]


def test_whoever_has_time_goes_together():
    assert size_of(of(*[10.0] * 16), linear(0.1, 0.1)) == 16


def test_the_most_urgent_has_half_its_time_left_over_if_the_others_can_wait():
    # 1.2 s of a batch of two is no more than half of 2.5 s; 1.3 of three would be.
    assert size_of(of(2.5, 9.0, 9.0, 9.0), linear(1.0, 0.1)) == 2


def test_where_the_others_cannot_wait_those_that_survive_the_largest_batch_go():
    # The first alone takes 1.1 s, and the six others, 1.6 s later, would be too late: it is given up for them.
    assert size_of(of(1.2, *[2.0] * 6), linear(1.0, 0.1)) == 6


def test_a_flood_is_no_reason_to_give_up_another_station():
    waiting = [Candidate(1.2), *(Candidate(2.0, Matters.LITTLE) for _ in range(6))]
    assert size_of(waiting, linear(1.0, 0.1)) == 1


def test_the_station_with_the_most_urgent_frame_gives_up_its_own_and_nobody_elses():
    flood = [Candidate(left_s, Matters.SOME) for left_s in (0.06, 0.08, 0.11, 0.12, 0.13, 0.17, 0.18, 0.19, 0.21)]
    waiting = [flood[0], Candidate(0.06), *flood[1:]]
    size = size_of(waiting, linear(0.02, 0.01))
    together = [each for each in waiting if each.left_s >= 0.02 + 0.01 * size][:size]
    assert Candidate(0.06) in together


def test_what_is_due_leaves_time_for_the_way_back_but_not_of_a_short_time_all():
    assert back_s(0.5) == 0.01
    assert back_s(0.02) == pytest.approx(0.002)
    assert back_s(-1.0) == 0.0


def test_a_thousand_that_wait_are_looked_at_in_moments():
    calls = []
    waiting = of(*[0.5 + i / 1000 for i in range(1024)])
    assert 0 < size_of(waiting, lambda size: calls.append(size) or 0.1 + 0.01 * size) < 1024
    assert len(calls) < 3000


def test_of_a_slow_model_frames_go_one_by_one():
    assert size_of(of(0.45, 0.46, 0.47), linear(0.0, 0.3)) == 1


def test_nobody_survives_what_takes_longer_than_anybody_has():
    assert size_of(of(0.1, 0.2), linear(0.3, 0.0)) == 0
    assert size_of([], linear(0.3, 0.0)) == 0


def test_who_has_no_hope_does_not_hurry_the_others():
    assert size_of(of(-1.0, 0.05, *[5.0] * 4), linear(0.1, 0.1)) == 4


@pytest.mark.parametrize("seconds", [0.01, 3.0])
def test_as_long_as_nothing_is_known_nothing_is_in_the_way(seconds):
    assert size_of(of(*[seconds] * 5), Pace()) == 5


def test_a_pace_is_a_line_through_what_batches_took():
    pace = Pace()
    for size in (1, 4, 9, 16, 2, 12) * 10:
        pace.learn(size, 0.010 + 0.004 * size)
    assert pace(1) == pytest.approx(0.014, rel=0.05)
    assert pace(16) == pytest.approx(0.074, rel=0.05)


def test_with_batches_of_one_a_batch_of_ten_is_thought_to_take_ten_times_as_long():
    pace = Pace()
    for _ in range(50):
        pace.learn(1, 0.02)
    assert pace(10) == pytest.approx(0.2)


def test_one_large_batch_tells_what_many_small_ones_did_not():
    pace = Pace()
    for _ in range(50):
        pace.learn(1, 0.02)
    pace.learn(16, 0.095)  # 0.005 s each, and 0.015 of its own
    assert pace(16) == pytest.approx(0.095, rel=0.1)


def test_a_larger_batch_never_takes_less_and_never_more_than_in_proportion():
    pace = Pace()
    for size, seconds in [(16, 0.01), (1, 0.5), (8, 0.02)]:
        pace.learn(size, seconds)
        assert pace(1) <= pace(2) <= pace(16) <= 16 * pace(1) + 1e-12


def test_old_batches_are_forgotten():
    pace = Pace()
    for seconds in [1.0] * 100 + [0.01] * 60:
        pace.learn(1, seconds)
    assert pace(1) == pytest.approx(0.01, rel=0.3)


def test_doubt_makes_hope():
    pace = Pace()
    pace.learn(1, 5.0)  # such as while a disk stood still
    for _ in range(30):
        pace.doubt()
    assert pace(1) < 0.3


def flooded(others, flood, left_s=10.0):
    return [Candidate(left_s)] * others + [Candidate(left_s, Matters.LITTLE)] * flood


def test_a_flood_fills_a_batch_for_a_quarter_of_what_anothers_new_frame_has():
    assert fair(16, flooded(3, 20), linear(0.0, 0.01), all_s=0.4) == 10
    assert fair(8, flooded(3, 20), linear(0.0, 0.01), all_s=0.4) == 8


def test_who_is_not_of_the_flood_is_in_whatever_that_takes():
    assert fair(16, flooded(12, 20), linear(0.0, 0.01), all_s=0.4) == 12
    assert fair(16, flooded(20, 0), linear(0.0, 0.01), all_s=0.4) == 16
    assert fair(0, flooded(20, 0), linear(0.0, 0.01), all_s=0.4) == 0


def test_no_place_is_kept_for_the_flood_by_those_who_cannot_be_in_the_batch():
    waiting = [*flooded(6, 0, left_s=0.11), *flooded(6, 0), *flooded(0, 20)]
    assert fair(16, waiting, linear(0.0, 0.01), all_s=0.2) == 6


def test_where_a_frame_alone_takes_long_a_batch_may_take_twice_that():
    assert fair(16, flooded(1, 20), linear(0.19, 0.02), all_s=0.4) == 11
