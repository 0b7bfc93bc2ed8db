"""`goldline screen --html`: the good pictures most unlike the others, each beside its heatmap."""

import html

import numpy as np

from pipeline.screening import DEVIATIONS, Screened
from workers import picture_page


def render(screened: Screened, names: list[str], *, folder: str) -> str:
    """A self-contained page.

    Args:
        screened: what to show; of its first pictures there are maps.
        names: of all pictures, in its order.
        folder: where they are.
    """
    shown = len(screened.maps)
    captions = (
        f"{place + 1}. {names[place]}, score {screened.scores[place]:.4g}"
        + (", STANDS OUT" if place < screened.standing_out else "")
        for place in range(shown)
    )
    pictures = zip(screened.pixels, screened.maps, captions, strict=True)
    # Half of what the shown ones' maps hold has no colour: even these are good parts nearly everywhere.
    low, high = float(np.median(screened.maps)), float(np.quantile(screened.maps, 0.999))
    unreadable = f" {len(screened.unreadable)} could not be read." if screened.unreadable else ""
    return picture_page.page(
        "screening",
        f"<h1>Good pictures unlike the others</h1><p>{html.escape(folder)}: the first {shown} of {len(names)}, each "
        f"scored by a model that learnt from others alone. {screened.standing_out} stand out: their scores lie more "
        f"than {DEVIATIONS:g} robust deviations above the median.{unreadable}</p>"
        "<p>Right of each picture: where its score comes from, in colours that go from the least to the most of what "
        "is on this page, so that the strongest are bright even where all is well.</p>"
        "<p>A rare good part should stay. A defect should not: its name goes into a file, a line each, for "
        f"<code>goldline fit --without FILE</code>.</p>{picture_page.frames(pictures, low=low, high=high)}",
    )
