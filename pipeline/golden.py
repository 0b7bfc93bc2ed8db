"""The golden set, frames that a person verified, and what of it and of the pool a refit may learn from."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data import Frame

_SHORT = 12  # digits of a picture's digest that a lineage keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """Frames that a person verified, whatever a verdict on them was.

    Attributes:
        goods: of good parts, one for each part, chosen by no threshold.
        defects: of defective parts; no model ever learns from them.
        learnt: sha256 of pictures (all digits, or the first 12) that the parent, or a model that it comes from, was
            fitted on: goods among them cannot calibrate.
    """

    goods: Sequence[Frame] = ()
    defects: Sequence[Frame] = ()
    learnt: Collection[str] = ()


def split(golden: Golden, *, anew: bool) -> tuple[list[Frame], list[Frame]]:
    """Golden goods that a fit anew learns from, and those that nothing learns from.

    The former are those that the parent learnt from, and half of the others; which half says the picture's digest, so
    that it is the same one at every refit.
    """
    seen = {picture[:_SHORT] for picture in golden.learnt}
    learnt, held_out = [], []
    for frame in distinct(golden.goods):
        picture = hashlib.sha256(frame.image).hexdigest()
        known = picture[:_SHORT] in seen
        half = hashlib.sha256(f"goldline refit {picture}".encode()).digest()[0] < 128
        if known or (anew and half):
            learnt.append(frame)
        else:
            held_out.append(frame)
    return (learnt if anew else []), held_out


def draw(pool: Sequence[Frame], golden: Golden, most: int, seed: int) -> tuple[list[Frame], dict[str, str]]:
    """At most so many frames of the pool, drawn by lot, and why the others are left out."""
    verified = {hashlib.sha256(frame.image).digest() for frame in (*golden.goods, *golden.defects)}
    left_out, fit = {}, []
    for frame in pool:
        if hashlib.sha256(frame.image).digest() in verified:
            left_out[frame.frame_id] = "it is in the golden set"
        else:
            fit.append(frame)
    chosen = set(np.random.default_rng(seed).permutation(len(fit))[:most].tolist())
    left_out |= {frame.frame_id: "not drawn: enough others were" for i, frame in enumerate(fit) if i not in chosen}
    return [frame for i, frame in enumerate(fit) if i in chosen], left_out


def distinct(frames: Sequence[Frame]) -> list[Frame]:
    """Each picture once: a copy shows nothing about another part."""
    found: dict[bytes, Frame] = {}
    for frame in frames:
        found.setdefault(hashlib.sha256(frame.image).digest(), frame)
    return list(found.values())
