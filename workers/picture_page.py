"""What HTML pages about pictures share: pictures inside the page, and beside each its heatmap."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.heatmap import encode_picture, overlay

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fbfaf7; max-width: 64rem; margin: 2rem auto; }
h2 { margin-top: 2.5rem; } .row { display: flex; gap: 2rem; flex-wrap: wrap; align-items: end; }
.frames { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .8rem; }
figure { margin: 0; border: 1px solid #d9d4c7; } figure div { display: flex; } figure img { width: 50%; }
figcaption { padding: .3rem .5rem; font-size: .8rem; overflow-wrap: anywhere; }
svg text { font-size: 11px; fill: #1c2430; }
"""


def page(title: str, body: str) -> str:
    """A self-contained page; the body is HTML already."""
    return (
        f"<!doctype html><meta charset=utf-8><title>Goldline: {html.escape(title)}</title><style>{_STYLE}</style>{body}"
    )


def write(file: Path, text: str) -> None:
    """Write a page; of names that are no Unicode it has what can be shown."""
    file.write_text(text, encoding="utf-8", errors="backslashreplace")


def frames(pictures: Iterable[tuple[NDArray[np.uint8], NDArray[np.float32], str]], *, low: float, high: float) -> str:
    """Pictures beside their heatmaps, as a grid.

    Args:
        pictures: each (3, H, W) uint8, with its map (H, W) and what is written below, which is escaped.
        low: the score without a colour.
        high: the score in full colour.
    """
    figures = []
    for pixels, scores, caption in pictures:
        picture = pixels.transpose(1, 2, 0)
        coloured = overlay(picture, scores, low=low, high=max(high, low + 1e-9))
        figures.append(figure(picture, coloured, html.escape(caption)))
    return f"<div class=frames>{''.join(figures)}</div>"


def figure(picture: NDArray[np.uint8], coloured: NDArray[np.uint8], caption: str) -> str:
    """A picture (H, W, 3) beside the same under its heatmap; the caption is HTML already."""
    pair = _image(picture, "picture") + _image(coloured, "the same under its heatmap")
    return f"<figure><div>{pair}</div><figcaption>{caption}</figcaption></figure>"


def _image(picture: NDArray[np.uint8], alt: str) -> str:
    """A picture as an element that carries its own data."""
    return f'<img alt="{alt}" src="data:image/png;base64,{base64.b64encode(encode_picture(picture)).decode()}">'
