"""Confidence intervals of accuracies, at 95 %.

A record holds how many videos a network got right, not which ones. So there is nothing to draw a bootstrap from, and
two runs cannot be paired video by video.
"""

import math

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def wilson(share: float, count: int) -> tuple[float, float]:
    """The interval of a share of `count` videos (Wilson, 1927): it stays in [0, 1] and suits few videos, too.

    Args:
        share: in [0, 1].
        count: of the videos, at least 1.
    """
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(first: tuple[float, int], second: tuple[float, int]) -> tuple[float, float]:
    """The interval of the change from a share to another one (Newcombe, 1998, method 10, from Wilson's intervals).

    It takes the two for independent. Two runs on the same videos mostly err on the same ones, so their change is then
    known better than the interval says.

    Args:
        first, second: share and number of videos of each.
    """
    (low1, high1), (low2, high2) = wilson(*first), wilson(*second)
    change = second[0] - first[0]
    return (
        change - math.hypot(second[0] - low2, high1 - first[0]),
        change + math.hypot(high2 - second[0], first[0] - low1),
    )
