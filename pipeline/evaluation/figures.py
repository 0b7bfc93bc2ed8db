"""Figures of merit. All rank: a higher score means more anomalous, and no threshold is chosen on the test set."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_FEWEST = 1.0  # goods that the allowed share must amount to, for misses at that share to mean anything


def auroc(goods: Sequence[float], defects: Sequence[float]) -> float | None:
    """Area under the ROC curve: the chance that a defect scores above a good part, ties counting half.

    Returns:
        None where either side is empty: then there is nothing to rank.
    """
    return _auroc(np.asarray(goods, np.float64), np.asarray(defects, np.float64))


def average_precision(goods: Sequence[float], defects: Sequence[float]) -> float | None:
    """Sum over thresholds of precision times the recall gained there, defects being what is sought.

    Returns:
        None where there are no defects.
    """
    if not len(defects):
        return None
    scores = np.concatenate([np.asarray(goods, np.float64), np.asarray(defects, np.float64)])
    sought = np.arange(len(scores)) >= len(goods)
    order = np.argsort(-scores, kind="stable")
    ends = _ends_of_ties(scores[order])
    found = np.cumsum(sought[order])[ends]
    recall_gained = np.diff(found, prepend=0) / len(defects)
    return float((recall_gained * found / (ends + 1)).sum())


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's, of two scores of the same pictures.

    Returns:
        None of fewer than three, or where either's scores are all alike: then there is no order to compare.
    """
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(stats.spearmanr(one, other).statistic)


def misses_at(goods: Sequence[float], defects: Sequence[float], rate: float) -> float | None:
    """Share of the defects that pass where at most `rate` of these goods is rejected.

    Returns:
        None where `rate` of the goods is less than one of them, or there are no defects.
    """
    allowed = int(rate * len(goods) + 1e-9)
    if not len(defects) or allowed < _FEWEST:
        return None
    line = np.sort(np.asarray(goods, np.float64))[-(allowed + 1)] if allowed < len(goods) else -np.inf
    return float((np.asarray(defects, np.float64) <= line).mean())


def pixel_auroc(
    maps: NDArray[np.float32], masks: NDArray[np.bool_], inside: NDArray[np.bool_] | None = None
) -> float | None:
    """AUROC of all pixels pooled. It saturates, and favours large defects.

    Args:
        maps: (N, H, W).
        masks: (N, H, W), true on defects.
        inside: (H, W), true where pixels count; None for everywhere.

    Returns:
        None where no pixel, or every pixel, of those that count is defective.
    """
    if inside is not None:
        maps, masks = maps[:, inside], masks[:, inside]
    return _auroc(maps[~masks].astype(np.float64), maps[masks].astype(np.float64))


def aupro(
    maps: NDArray[np.float32],
    masks: NDArray[np.bool_],
    limit: float = 0.3,
    inside: NDArray[np.bool_] | None = None,
) -> float | None:
    """Area under the per-region overlap, up to a false-positive rate of `limit`, divided by it.

    Regions are the masks' connected components (eight neighbours); each counts the same, however large
    (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021). Of a region that lies partly outside of what
    counts, the part inside is the whole of it. Where the curve rises at the limit itself, the rise is not below it.

    Args:
        maps: (N, H, W).
        masks: (N, H, W), true on defects.
        limit: in (0, 1].
        inside: (H, W), true where pixels count; None for everywhere.

    Returns:
        None where no pixel, or every pixel, of those that count is defective.
    """
    counts = np.ones(maps.shape[1:], np.bool_) if inside is None else inside
    overlap = np.zeros((len(maps), np.count_nonzero(counts)), np.float64)
    regions = 0
    for share, mask in zip(overlap, masks, strict=True):
        labels = ndimage.label(mask, structure=_EIGHT_NEIGHBOURS)[0][counts]
        sizes = np.bincount(labels)
        regions += int(np.count_nonzero(sizes[1:]))
        share[labels > 0] = 1 / sizes[labels[labels > 0]]
    maps, masks = maps[:, counts], masks[:, counts]
    if not masks.any() or masks.all():
        return None
    order = np.argsort(-maps.ravel(), kind="stable")
    ends = _ends_of_ties(maps.ravel()[order])
    pro = np.concatenate([[0], np.cumsum(overlap.ravel()[order])[ends] / regions])
    fpr = np.concatenate([[0], np.cumsum(~masks.ravel()[order])[ends] / (~masks).sum()])
    end = int(np.searchsorted(fpr, limit, "left"))  # the first point at the limit or beyond
    slope = (pro[end] - pro[end - 1]) / (fpr[end] - fpr[end - 1])
    at_limit = pro[end - 1] + slope * (limit - fpr[end - 1])
    return float(np.trapezoid(np.append(pro[:end], at_limit), np.append(fpr[:end], limit)) / limit)


def _auroc(goods: NDArray[np.float64], defects: NDArray[np.float64]) -> float | None:
    if not len(goods) or not len(defects):
        return None
    ranks = stats.rankdata(np.concatenate([goods, defects]))
    m = len(defects)
    above = float(ranks[len(goods) :].sum()) - m * (m + 1) / 2
    return above / (len(goods) * m)


def _ends_of_ties(descending: NDArray[np.floating]) -> NDArray[np.intp]:
    """The last place of every run of equal values: a threshold cannot part them."""
    return np.append(np.flatnonzero(np.diff(descending)), len(descending) - 1)
