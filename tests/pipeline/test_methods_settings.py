"""What is said of a setting that does not fit."""

import pytest

from pipeline import methods
from pipeline.errors import ConfigError
from pipeline.methods.padim import PadimConfig


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


def test_settings_for_parts_that_lie_alike_are_padims_and_give_way_to_those_that_are_set():
    config = methods.make_config("padim", {"shrinkage": "0.1"}, fixtured=True)
    assert config == PadimConfig(
        dim=128, embedding="principal", locally_aware=True, shrinkage=0.1, ridge=1e-5, sigma=PadimConfig().sigma
    )
    both = methods.make_configs(("patchcore", "padim"), {"dim": "64"}, fixtured=True)
    assert (both["padim"].dim, both["padim"].locally_aware) == (64, True)
    assert both["patchcore"] == methods.make_config("patchcore", {"dim": 64}), "the other's are its own"


def test_a_method_that_has_no_settings_for_parts_that_lie_alike_is_refused():
    with pytest.raises(ConfigError, match=r"patchcore has no settings for parts that lie alike\. With such: padim"):
        methods.make_config("patchcore", {}, fixtured=True)
    with pytest.raises(ConfigError, match=r"none of mkd, fyd has settings for parts that lie alike\. With such: padim"):
        methods.make_configs(("mkd", "fyd"), {}, fixtured=True)
