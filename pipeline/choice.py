"""Which methods were tried on good pictures, and which was taken: as a model's lineage keeps it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

ERRORS = 2.0
"""Standard errors that a candidate must lead by."""
FEW = 0.75
"""AUROC of planted defects below which a model finds few: chance is 0.5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A method, and those of its settings that are not its paper's."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """For people, as on the command line."""
        return " ".join([self.method, *(f"{name}={str(each).lower()}" for name, each in sorted(self.settings.items()))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What a candidate finds.

    Attributes:
        auroc: of good pictures that it was not fitted on against the same with planted defects.
        lead: of its AUROC over the first candidate's.
        lead_error: standard error of that, by the pictures held out.
    """

    candidate: Candidate
    auroc: float
    lead: float
    lead_error: float

    @property
    def leads(self) -> bool:
        """Whether it is better than the first by more than chance explains."""
        return self.lead > ERRORS * self.lead_error


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodChoice:
    """What was tried, in the candidates' order, and what is taken."""

    taken: Candidate
    tried: tuple[Tried, ...]

    def __str__(self) -> str:
        """As lines for people."""
        return "\n".join(self.rows())

    @property
    def doubt(self) -> str | None:
        """What to think of a method that finds few of the planted defects."""
        taken = next(each for each in self.tried if each.candidate == self.taken)
        if taken.auroc >= FEW:
            return None
        return (
            f"it tells few planted defects from good parts: AUROC {taken.auroc:.2f}, where chance is 0.5. Score known "
            "defects before you trust it; then look closer (--size 320, --tiles 1,2) or with another --backbone"
        )

    def rows(self) -> list[str]:
        """A line for each that was tried."""
        first = self.tried[0]
        return [
            f"{'taken' if each.candidate is self.taken else 'tried':10} {each.candidate}: AUROC {each.auroc:.3f} of "
            "planted defects"
            + ("" if each is first else f", lead {each.lead:+.3f} (must be above {ERRORS * each.lead_error:.3f})")
            for each in self.tried
        ]

    def body(self) -> list[dict[str, Any]]:
        """As JSON."""
        return [
            {
                "method": each.candidate.method,
                "settings": dict(each.candidate.settings),
                "planted_auroc": round(each.auroc, 5),
                "lead": round(each.lead, 5),
                "lead_error": round(each.lead_error, 5),
                "taken": each.candidate is self.taken,
            }
            for each in self.tried
        ]


class _Row(msgspec.Struct, frozen=True):
    method: str
    settings: dict[str, str | int | float | bool]
    planted_auroc: float
    lead: float
    lead_error: float
    taken: bool


def read(body: object) -> MethodChoice | None:
    """The choice that `MethodChoice.body` described; None where that is none."""
    try:
        rows = msgspec.convert(body, list[_Row])
    except msgspec.ValidationError:
        return None
    tried = tuple(
        Tried(
            candidate=Candidate(method=row.method, settings=row.settings),
            auroc=row.planted_auroc,
            lead=row.lead,
            lead_error=row.lead_error,
        )
        for row in rows
    )
    taken = [each.candidate for each, row in zip(tried, rows, strict=True) if row.taken]
    return MethodChoice(taken=taken[0], tried=tried) if len(taken) == 1 else None
