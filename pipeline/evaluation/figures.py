"""Figures of merit."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def auroc(goods: Sequence[float], defects: Sequence[float]) -> float | None:
    """Area under the ROC curve: the chance that a defect scores above a good part, ties counting half.

    Returns:
        None where either side is empty: then there is nothing to rank.
    """
    if not goods or not defects:
        return None
    ranks = stats.rankdata(np.concatenate([np.asarray(goods, np.float64), np.asarray(defects, np.float64)]))
    m = len(defects)
    above = float(ranks[len(goods) :].sum()) - m * (m + 1) / 2
    return above / (len(goods) * m)
