"""What the demo's page draws lies inside it."""

import re

from workers.demo.page import histogram


def test_labels_of_the_histogram_lie_inside_it():
    drawn = histogram([3.0, 20.0, 34.0, 51.0, 207.0])
    left, wide = map(float, re.search(r"viewBox='(-?\d+) 0 (\d+)", drawn).groups())
    labels = re.findall(r"text-anchor=middle x=(\d+) y=\d+>(\d+ ms)<", drawn)
    assert [text for _, text in labels] == ["5 ms", "10 ms", "20 ms", "50 ms", "100 ms", "200 ms"]
    half = 0.5 * 0.65 * 11 * len("200 ms")  # px of a letter
    assert all(left + half <= float(x) <= left + wide - half for x, _ in labels)


def test_nothing_to_draw_is_said():
    assert histogram([]) == "<p>No results.</p>"
