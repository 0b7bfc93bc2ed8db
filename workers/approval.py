"""Who lets a refit's candidate go live: a person, a trial beside the model in service, or its review alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

from model_store import (
    ITSELF,
    Lineage,
    Marking,
    ModelKey,
    ModelStore,
    State,
    Version,
    promote,
    short,
    state_of,
    withdraw,
    withdrawal,
)
from model_store.pool import DiskPool
from pipeline import review as reviewing
from pipeline.errors import ConfigError
from pipeline.refit_settings import Approval, Refit
from pipeline.review import Review
from pipeline.settings import Settings
from workers import provenance, refit_sources

if TYPE_CHECKING:
    from workers.comparing import Difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What became of a candidate."""

    what: Literal["promoted", "on trial", "stored", "refused", "trial goes on"]
    words: str


def after_review(
    settings: Settings,
    store: ModelStore,
    pool: DiskPool,
    key: ModelKey,
    version: Version,
    parent: Version,
    review: Review,
    approval: Approval,
) -> Decided:
    """Do with a candidate that no rule refuses what its approval says.

    Where a rule could not be checked it waits for a person, whatever the approval; so it does where the station began
    to drift while it was fitted. What is not stored anew (a refit
    that comes to the same model as before) and was withdrawn stays so.

    Raises:
        PromotionConflict: another version went in service meanwhile.
    """
    told = withdrawal(store, key, version)
    if told:
        return Decided(what="refused", words=f"the same model as before, which {told}")
    if refused := _refuse_defective(store, pool, key, version):
        return refused
    wait = f"it waits for a person: goldline refit approve {key.station} {short(version)} --recipe {key.recipe}"
    if approval == "manual" or not review.complete:
        unchecked = f" (not checked: {'; '.join(review.unchecked)})" if review.unchecked else ""
        return Decided(what="stored", words=f"no rule speaks against it{unchecked}; {wait} --by NAME")
    drift = refit_sources.drifting(settings, key).finding
    if drift.outcome != "passed":
        return Decided(what="stored", words=f"no rule spoke against it, but since then {drift.words}; {wait} --by NAME")
    if approval == "auto":
        promote(store, key, version, expected=parent, who=ITSELF, why="refit: every rule of its review passed")
        return Decided(what="promoted", words="every rule of its review passed: it is in service")
    return _try_out(store, key, version, wait)


def _try_out(store: ModelStore, key: ModelKey, version: Version, wait: str) -> Decided:
    marks = store.marks(key)
    if marks.shadow is not None:
        return Decided(what="stored", words=f"{short(marks.shadow)} is on trial already; {wait} --by NAME")
    tried = replace(marks, shadow=version, canary_share=0.0)
    store.mark(key, tried, expected=marks, who=ITSELF, why="refit: trial before it may go in service")
    return Decided(what="on trial", words="its review passed: it is the shadow, and a later refit decides about it")


def on_trial(store: ModelStore, key: ModelKey) -> Version | None:
    """A refit's candidate that a refit put on trial; trials of people are theirs to end.

    What is in service is on trial no more: a promotion that was killed before its last step left the mark, which goes.
    """
    markings = store.markings(key)
    if not markings or markings[-1].marks.shadow is None:
        return None
    shadow = markings[-1].marks.shadow
    if shadow == store.current(key):
        marks = markings[-1].marks
        store.mark(key, marks.without_shadow(), expected=marks, who=ITSELF, why="promoted")
        return None
    return shadow if _began(markings, shadow).who == ITSELF else None


def decide_trial(settings: Settings, store: ModelStore, pool: DiskPool, key: ModelKey, version: Version) -> Decided:
    """Promote a candidate on trial, withdraw it, or let the trial go on.

    Raises:
        ConfigError: no broker answers, so that nothing is known of the trial.
    """
    from workers import comparing  # noqa: PLC0415 - Kafka's client takes a moment to import

    if refused := _refuse_defective(store, pool, key, version):
        return refused
    if words := _outdated(store, key, version):
        withdraw(store, key, version, who=ITSELF, why=words)
        return Decided(what="refused", words=words)
    drift = refit_sources.drifting(settings, key).finding
    if drift.outcome != "passed":
        words = f"nothing goes live by itself unless the station is known not to drift: {drift.words}"
        return Decided(what="trial goes on", words=words)
    parent = Version(provenance.lineage_of(store, key, version).parent)
    began = _began(store.markings(key), version).at
    found = comparing.compare(comparing.from_trial(settings, key, version, parent), version, parent, examples=0)
    what, words = judged(settings.refit, found, datetime.now(UTC) - began)
    words = f"trial since {began:%Y-%m-%d %H:%M} UTC: {words}"
    if what == "refused":
        withdraw(store, key, version, who=ITSELF, why=words)
    if what == "promoted":
        promote(store, key, version, expected=parent, who=ITSELF, why=words)
        words += "; it is in service"
    return Decided(what=what, words=words)


def judged(
    rules: Refit, found: "Difference", age: timedelta
) -> tuple[Literal["promoted", "refused", "trial goes on"], str]:
    """What a trial says, and in words. Its verdicts are of parts that nobody has verified.

    Args:
        rules: what it takes, and what may differ.
        found: between the candidate, A, and its parent, B.
        age: of the trial.
    """
    rejects = found.both_reject + found.b_rejects_alone
    if age < timedelta(hours=rules.shadow_h) or found.frames < rules.shadow_frames or rejects < rules.shadow_rejects:
        return "trial goes on", (
            f"{found.frames} frames, of which the model in service rejects {rejects}; it takes {rules.shadow_h:g} h, "
            f"{rules.shadow_frames} frames and {rules.shadow_rejects} rejects"
        )
    differ, passes = (found.a_rejects_alone + found.b_rejects_alone) / found.frames, found.b_rejects_alone / rejects
    words = (
        f"of {found.frames} frames {differ:.2%} had another verdict, {rules.differ_max:.2%} may at most; of {rejects} "
        f"rejects of the model in service {passes:.2%} would pass, {rules.passes_max:.2%} may at most"
    )
    return "promoted" if differ <= rules.differ_max and passes <= rules.passes_max else "refused", words


def approve(
    settings: Settings, store: ModelStore, pool: DiskPool | None, key: ModelKey, version: Version, *, who: str, why: str
) -> None:
    """Put a candidate in service that a person has looked at.

    Raises:
        ConfigError: it is no refit's candidate, is refused, withdrawn or outdated, or its station drifts; the message
            says so.
        PromotionConflict: another version went in service at that moment.
    """
    lineage = provenance.lineage_of(store, key, version)
    if not who.strip() or who == ITSELF:
        raise ConfigError("a person's name is needed: --by NAME")
    if "refit" not in lineage.extra:
        raise ConfigError(f"{short(version)} comes from no refit: `goldline models promote` puts it in service")
    review = reviewing.read(lineage.extra.get("review"))
    if review is None or not review.passed:
        reasons = "; ".join(review.reasons) if review else "its review cannot be read"
        raise ConfigError(f"{short(version)} was refused: {reasons}")
    state = state_of(version, store.history(key), store.marks(key))
    if state not in {State.CANDIDATE, State.SHADOW, State.WITHDRAWN}:
        raise ConfigError(f"{short(version)} is {state} already")
    refused = _refuse_defective(store, pool, key, version) if pool else None
    if words := refused.words if refused else _outdated(store, key, version):
        raise ConfigError(f"{short(version)} cannot be approved: {words}")
    drift = refit_sources.drifting(settings, key).finding
    if drift.outcome == "failed":
        raise ConfigError(f"{short(version)} cannot be approved while the station drifts: {drift.words}")
    promote(store, key, version, expected=Version(lineage.parent), who=who, why=why or "refit approved")


def _began(markings: Sequence[Marking], shadow: Version) -> Marking:
    """The change of marks that a trial began with, the last line being part of it."""
    began = markings[-1]
    for marking in reversed(markings):
        if marking.marks.shadow != shadow:
            break
        began = marking
    return began


def _refuse_defective(store: ModelStore, pool: DiskPool, key: ModelKey, version: Version) -> Decided | None:
    """Withdraw what has learnt from a part that was reported as defective since it was taken from the pool."""
    parts = _defective(pool, key, provenance.lineage_of(store, key, version))
    if not parts:
        return None
    words = f"it has learnt from {len(parts)} parts that were reported as defective since"
    withdraw(store, key, version, who=ITSELF, why=words)
    return Decided(what="refused", words=words)


def _outdated(store: ModelStore, key: ModelKey, version: Version) -> str:
    """Whether it was reviewed beside a model that is in service no more, in words; empty if not."""
    parent, current = provenance.lineage_of(store, key, version).parent, store.current(key)
    if parent == current:
        return ""
    now = short(current) if current else "nothing"
    return f"it was held beside {short(parent)}, and {now} is in service since: refit again"


def _defective(pool: DiskPool, key: ModelKey, lineage: Lineage) -> set[str]:
    """Parts that a version has learnt from, by its own lineage, and that the pool knows to be defective."""
    learnt = set(provenance.parts(lineage))
    said = (removal.feedback for removal in pool.removals())
    return {f.part_id for f in said if f.concerns(key) and provenance.part(f.part_id) in learnt}
