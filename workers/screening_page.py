"""`goldline screen --html`: the good pictures most unlike the others, each beside its heatmap."""

import html

import numpy as np

from pipeline.screening import Screened
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
        + (", stands out" if place < screened.standing_out else "")
        for place in range(shown)
    )
    pictures = zip(screened.pixels, screened.maps, captions, strict=True)
    # Half of what the shown ones' maps hold has no colour: even these are good parts nearly everywhere.
    low, high = float(np.median(screened.maps)), float(np.quantile(screened.maps, 0.999))
    return picture_page.page(
        "screening",
        f"<h1>Good pictures unlike the others</h1><p>{html.escape(folder)}: the first {shown} of {len(names)}, each "
        f"scored by a model that learnt from others alone; {screened.standing_out} stand out. A rare good part should "
        "stay. A defect should not: its name goes into a file, a line each, for <code>goldline fit --without "
        f"FILE</code>.</p>{picture_page.frames(pictures, low=low, high=high)}",
    )
