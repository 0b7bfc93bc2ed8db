"""What is said of a setting that does not fit."""

import pytest

from pipeline import methods
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("mkd", {"map": "foo"}, "mkd: map is one of gradient, distance, not 'foo'"),
        ("deep_svdd", {"objective": "soft"}, "objective is one of "),
        ("patchcore", {"coreset": "much"}, "patchcore: coreset is a number, not 'much'"),
        ("mkd", {"epochs": "2.5"}, "mkd: epochs is a whole number, not '2.5'"),
        ("patchcore", {"reweight": "maybe"}, "patchcore: reweight is true or false, not 'maybe'"),
        ("students", {"stride": "3"}, "stride must be 1, 2, 4 or 8, not 3"),
    ],
)
def test_a_setting_that_does_not_fit_is_told_with_what_would(method, given, said):
    with pytest.raises(ConfigError, match=said):
        methods.make_config(method, given)
