"""How far an accuracy can be off because the test images are a sample."""

from __future__ import annotations

import math
import statistics


def wilson_interval(share: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval (low, high) of a probability.

    It holds every probability p with |share - p| <= z sqrt(p (1 - p) / count), where z is the
    quantile of the normal distribution. It stays in [0, 1], and is accurate for small counts and
    for shares of 0 and 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", Journal
    of the American Statistical Association 22 (1927); recommended by Brown, Cai and DasGupta,
    "Interval estimation for a binomial proportion", Statistical Science 16 (2001).

    Args:
      share: the observed share, in [0, 1], such as an accuracy.
      count: the number of independent observations, such as images; above 0.
      confidence: the probability that such an interval holds the true value, in (0, 1).
    """
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    centre = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    scale = 1 + z**2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def with_interval(name: str, share: float, count: int) -> dict[str, float]:
    """Returns a share and its 95 % interval, by the names NAME, NAME_low and NAME_high.

    Args:
      name: such as "accuracy".
      share, count: as for `wilson_interval`.
    """
    low, high = wilson_interval(share, count)
    return {name: share, f"{name}_low": low, f"{name}_high": high}


def in_percent(share: float, count: int) -> str:
    """Returns a share and its 95 % interval in per cent, such as "79.2 (73.6 to 83.8)".

    Args:
      share, count: as for `wilson_interval`.
    """
    low, high = wilson_interval(share, count)
    return f"{100 * share:.1f} ({100 * low:.1f} to {100 * high:.1f})"
