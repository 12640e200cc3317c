import pytest
from scipy.stats import binomtest

from flaxvid.report.intervals import newcombe, wilson


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 7), (5, 10), (93, 100), (1913, 2048)])
def test_wilson_is_that_of_scipy(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_newcombe_is_that_of_his_paper():
    """Newcombe (1998), method 10: 56 of 70 less 48 of 80, 9 of 10 less 3 of 10, 10 of 10 less none of 20."""
    for (first, second), expected in (
        (((48, 80), (56, 70)), (0.0524, 0.3339)),
        (((3, 10), (9, 10)), (0.1705, 0.8090)),
        (((0, 20), (10, 10)), (0.6791, 1.0)),
    ):
        shares = [(right / count, count) for right, count in (first, second)]
        assert newcombe(*shares) == pytest.approx(expected, abs=5e-5)
