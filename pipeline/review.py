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

from pipeline.guarantee import Guarantee, promise
from pipeline.refit_settings import Rules

Outcome: TypeAlias = Literal["passed", "failed", "not checked"]
Values: TypeAlias = NDArray[np.float64]

RULES = (
    "frames",
    "calibration",
    "parent",
    "outliers",
    "new share",
    "distance",
    "size",
    "goods",
    "defects",
    "lost defects",
)
POINT_OF_RECALL_NEEDS = 100  # golden defects
_FARTHEST = 1e6  # a distance that is none: JSON knows no infinity


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


def in_full(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """In the order of RULES, those that were not come to as well; others after them."""
    found = {finding.rule: finding for finding in findings}
    unreached = "not come to: another rule failed before"
    known = [found.pop(rule) if rule in found else not_checked(rule, unreached) for rule in RULES]
    return (*known, *found.values())


def read(value: object) -> Review | None:
    """The review in a version's lineage; None where there is none, or none that can be read."""
    try:
        return msgspec.convert(value, Review)
    except msgspec.ValidationError:
        return None


def enough_frames(left: int, offered: int, rules: Rules) -> Finding:
    """Frames that are left to learn from."""
    return _judged(
        "frames",
        left >= rules.frames_min,
        seen=left,
        needed=rules.frames_min,
        words=f"{left} frames to learn from, of {offered} usable in the pool; {rules.frames_min} are needed at least",
    )


def calibration(goods: int, before: Guarantee, rate: float, rules: Rules) -> Finding:
    """Verified goods that neither model learnt from: enough, and for no less than what is promised now."""
    if goods < rules.goods_min:
        words = (
            f"{goods} verified goods that no model learnt from; {rules.goods_min} are needed at least to calibrate a "
            "threshold, and accepted frames cannot: draw some with `goldline audit sample`, let a person verify them"
        )
        return _judged("calibration", False, seen=goods, needed=rules.goods_min, words=words)
    now = promise(goods, rate, before.confidence)
    if before.holds and before.rate <= rate and not now.holds:
        words = f"the model in service promises {before}; {goods} verified goods that no model learnt from cannot"
        return _judged("calibration", False, seen=goods, needed=now.goods_needed, words=words)
    return _judged("calibration", True, seen=goods, needed=rules.goods_min, words=f"{goods} verified goods: {now}")


def left_out(rule: str, dropped: int, of: int, bound: float, why: str) -> Finding:
    """The share of frames that one look left out; of too many the pool itself is doubtful."""
    share = dropped / of if of else 0.0
    words = f"{dropped} of {of} frames left out: {why}; of more than {bound:.0%} the pool as a whole is doubted"
    return _judged(rule, share <= bound, seen=share, needed=bound, words=words)


def new_share(share: float, most: float) -> Finding:
    """How much of the candidate comes from new frames."""
    words = f"{share:.1%} of the model comes from new frames; {most:.0%} may at most"
    return _judged("new share", share <= most + 1e-9, seen=share, needed=most, words=words)


def distance(new: Sequence[Values], held_out: Sequence[Values], rules: Rules) -> Finding:
    """How far new frames lie from the parent, beside golden goods that it never saw.

    Args:
        new: numbers of the kept frames under the parent, (N,) each: scores, means of maps.
        held_out: the same of the golden goods.
        rules: with the bound, in units of the goods' upper half: from their median to their 95 % quantile.
    """
    farthest = max(_shift(a, b) for a, b in zip(new, held_out, strict=True))
    words = (
        f"half of the new frames lie {farthest:.2f} or more beyond the median of golden goods, where 1 is their 95 % "
        f"quantile; {rules.distance_max:g} may be at most"
    )
    return _judged("distance", farthest <= rules.distance_max, seen=farthest, needed=rules.distance_max, words=words)


def size(size_bytes: int, before: int, rules: Rules) -> Finding:
    """The candidate's size."""
    words = f"{size_bytes:,} bytes, {before:,} before; {rules.bank_max_bytes:,} may be at most"
    return _judged(
        "size", size_bytes <= rules.bank_max_bytes, seen=size_bytes, needed=rules.bank_max_bytes, words=words
    )


def goods(before: NDArray[np.bool_], after: NDArray[np.bool_], rules: Rules) -> Finding:
    """Whether golden goods are rejected more often: an exact one-sided sign test on those decided differently."""
    worse, better = int((after & ~before).sum()), int((before & ~after).sum())
    p = _sign_test(worse, better)
    words = (
        f"of {len(before)} golden goods {int(after.sum())} are rejected, {int(before.sum())} by the model in service; "
        f"{worse} newly, {better} no more: p = {p:.3g} (exact sign test), refused at {rules.worse_at:g} or less"
    )
    return _judged("goods", p > rules.worse_at, seen=p, needed=rules.worse_at, words=words)


def defects(before: NDArray[np.bool_], after: NDArray[np.bool_], rules: Rules) -> Finding:
    """Whether golden defects are missed more often: the same test."""
    worse, better = int((before & ~after).sum()), int((after & ~before).sum())
    p = _sign_test(worse, better)
    words = (
        f"of {len(before)} golden defects {int(after.sum())} are caught, {int(before.sum())} by the model in service: "
        f"p = {p:.3g} (exact sign test), refused at {rules.worse_at:g} or less"
    )
    found = _judged("defects", p > rules.worse_at, seen=p, needed=rules.worse_at, words=words)
    return _if_enough(found, before, rules, "the model in service")


def lost(rule: str, before: NDArray[np.bool_], after: NDArray[np.bool_], rules: Rules, whose: str) -> Finding:
    """Golden defects that were caught and are missed now: none may be, or a small share where there are enough to say.

    Where fewer than `defects_min` were caught it is not checked, unless more than may be are missed of these already.

    Args:
        rule: its name.
        before: (N,), which golden defects the other model catches.
        after: (N,), which the candidate catches.
        rules: with the share.
        whose: the other model, in words.
    """
    n, gone = len(before), int((before & ~after).sum())
    enough = n >= POINT_OF_RECALL_NEEDS
    allowed = int(rules.recall_lost_max * n + 1e-9) if enough else 0
    share = f"{gone / n:.1%} of recall" if enough else "how much of recall that is, so few are too few to say"
    words = f"{gone} of {n} golden defects that {whose} catches are missed ({share}); {allowed} may be at most"
    return _if_enough(_judged(rule, gone <= allowed, seen=gone, needed=allowed, words=words), before, rules, whose)


def recall_lost(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> float | None:
    """Share of golden defects that are caught no more; None where they are too few for such a figure."""
    return float((before & ~after).mean()) if len(before) >= POINT_OF_RECALL_NEEDS else None


def _if_enough(found: Finding, before: NDArray[np.bool_], rules: Rules, whose: str) -> Finding:
    """A pass is one where enough golden defects were caught, those alone can be lost; a failure stands in any case."""
    caught = int(before.sum())
    if found.outcome == "failed" or caught >= rules.defects_min:
        return found
    if not len(before):
        return not_checked(found.rule, "no golden defects: nothing can be said about misses")
    words = f"{caught} golden defects that {whose} catches are too few to say: {rules.defects_min} are needed at least"
    return not_checked(found.rule, words)


def not_checked(rule: str, words: str) -> Finding:
    """A rule for which something is missing."""
    return Finding(rule=rule, outcome="not checked", words=words)


def _judged(rule: str, holds: bool, *, seen: float, needed: float, words: str) -> Finding:
    return Finding(rule=rule, outcome="passed" if holds else "failed", seen=seen, needed=needed, words=words)


def _sign_test(worse: int, better: int) -> float:
    """P(at least so many worse), if either were as likely."""
    return float(stats.binom.sf(worse - 1, worse + better, 0.5)) if worse else 1.0


def _shift(new: Values, held_out: Values) -> float:
    """How far the median of `new` is above that of `held_out`, in units of the latter's upper half."""
    middle, high = (float(np.quantile(held_out, q)) for q in (0.5, 0.95))
    above = float(np.median(new)) - middle
    if above <= 0:
        return 0.0
    return min(above / (high - middle), _FARTHEST) if high > middle else _FARTHEST
