"""What a trial beside the model in service says of a refit's candidate."""

from datetime import timedelta

import pytest

from pipeline.refit_settings import Refit
from workers.approval import judged
from workers.comparing import Difference

RULES = Refit()
A_DAY = timedelta(hours=24)


def trial(frames: int = 1000, *, both: int = 0, candidate_alone: int = 0, parent_alone: int = 0) -> Difference:
    """So many frames, of which so many both, the candidate alone, and the model in service alone reject."""
    return Difference(
        a="candidate",
        b="parent",
        frames=frames,
        both_pass=frames - both - candidate_alone - parent_alone,
        both_reject=both,
        a_rejects_alone=candidate_alone,
        b_rejects_alone=parent_alone,
        rank_correlation=None,
        examples=(),
    )


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (trial(both=10), "promoted"),
        (trial(both=9, parent_alone=1), "promoted"),
        (trial(both=8, parent_alone=2), "refused"),
        (trial(parent_alone=10), "refused"),
        (trial(both=10, candidate_alone=10), "promoted"),
        (trial(both=10, candidate_alone=11), "refused"),
        (trial(both=200, parent_alone=11), "refused"),
    ],
)
def test_few_verdicts_may_differ_and_of_the_rejects_few_may_pass(found: Difference, what: str) -> None:
    assert judged(RULES, found, A_DAY)[0] == what


@pytest.mark.parametrize(
    ("found", "age"),
    [
        (trial(both=10), timedelta(hours=23)),
        (trial(999, both=10), A_DAY),
        (trial(both=9), A_DAY),
        (trial(parent_alone=9), A_DAY),
    ],
)
def test_it_takes_time_frames_and_rejects(found: Difference, age: timedelta) -> None:
    what, words = judged(RULES, found, age)
    assert what == "trial goes on"
    assert "it takes 24 h, 1000 frames and 10 rejects" in words
