"""What accepts a refit or refuses it: one finding for each rule, with what was seen, what is needed, and words.

A rule that could not be checked (no golden defects, for one) is no pass: it is told as such, and keeps a candidate from
going live without a person. Tests on golden parts are paired: both models decide about the same parts, so that only
those count about which they differ, and by chance either side would have as many (the exact form of McNemar's test,
1947, which is the sign test).
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import stats

from pipeline.errors import FitError
from pipeline.guarantee import promise
from pipeline.refit_settings import Rules

Outcome: TypeAlias = Literal["passed", "failed", "not checked"]
Values: TypeAlias = NDArray[np.float64]

POINT_OF_RECALL_NEEDS = 100  # golden defects


class Finding(Struct, frozen=True, kw_only=True):
    """What came of one rule.

    Attributes:
        rule: its name, the same in every review.
        seen: the value; None where there is none.
        needed: the bound that it was held to; `words` say on which side.
        words: for people, one line.
    """

    rule: str
    outcome: Outcome
    seen: float | None = None
    needed: float | None = None
    words: str


class Review(Struct, frozen=True, kw_only=True):
    """All findings about a candidate.

    Attributes:
        how: `incremental`, from the parent's own state and new pictures, or `anew`.
        pool: frames that were offered; `used` of them are in the candidate.
        recall_lost: share of the golden defects that the parent catches and the candidate misses; None where there are
            too few to say.
    """

    findings: tuple[Finding, ...]
    how: Literal["incremental", "anew", "none"] = "none"
    pool: int = 0
    used: int = 0
    recall_lost: float | None = None

    @property
    def passed(self) -> bool:
        """No rule failed; some may not have been checked."""
        return all(finding.outcome != "failed" for finding in self.findings)

    @property
    def complete(self) -> bool:
        """Every rule was checked, and none failed: what may go live without a person."""
        return all(finding.outcome == "passed" for finding in self.findings)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Words of the rules that failed."""
        return tuple(f"{each.rule}: {each.words}" for each in self.findings if each.outcome == "failed")

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Words of the rules that could not be checked."""
        return tuple(f"{each.rule}: {each.words}" for each in self.findings if each.outcome == "not checked")

    def finding(self, rule: str) -> Finding:
        """That of a rule.

        Raises:
            KeyError: there is none.
        """
        for each in self.findings:
            if each.rule == rule:
                return each
        raise KeyError(rule)


def read(value: object) -> Review | None:
    """The review in a version's lineage; None where there is none, or none that can be read."""
    try:
        return msgspec.convert(value, Review)
    except msgspec.ValidationError:
        return None
