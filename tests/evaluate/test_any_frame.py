import pytest

from flaxvid.evaluate.any_frame import clip_milliseconds, largest_within


def test_a_clip_takes_time(network):
    model, variables = network
    assert 0 < clip_milliseconds(model, variables, 2, 32, repeats=3) < 10_000


@pytest.mark.parametrize(("budget", "count"), [(4, 4), (7.9, 4), (8, 8), (100, 16)])
def test_the_budget_is_used_up(budget, count):
    chosen, measured = largest_within(budget, (16, 4, 8, 4), float)
    assert chosen == count
    assert len(measured) <= 2
    assert measured == {n: float(n) for n in measured}


def test_a_budget_for_nothing_is_an_error():
    with pytest.raises(ValueError, match="within 3 ms a clip, got 4 ms at 4"):
        largest_within(3, (4, 8, 16), float)
