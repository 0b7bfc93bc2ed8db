"""What is measured is what is recommended."""

from pipeline.choosing import AUTO
from pipeline.methods import make_config
from tests.benchmarks.accuracy import METHODS


def test_the_default_and_what_is_recommended_for_parts_that_lie_alike_are_measured():
    assert (AUTO, {}) in METHODS
    measured = [make_config(method, settings) for method, settings in METHODS if method != AUTO]
    assert make_config("patchcore", {}) in measured
    assert make_config("padim", {}, fixtured=True) in measured
