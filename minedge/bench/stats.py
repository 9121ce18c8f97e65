"""Medians, spreads, ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spread", "ratios", "spread"]


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles, of `n` values."""

    median: float
    low: float
    high: float
    n: int

    @property
    def relative(self) -> float:
        """Half the distance of the quartiles over the median: the ± of the tables."""
        return (self.high - self.low) / 2 / self.median if self.median else 0.0

    def per(self, amount: float) -> Spread:
        """Of durations, the rate of `amount` a turn; the slow quartile becomes the low one."""
        return Spread(amount / self.median, amount / self.high, amount / self.low, self.n)

    def times(self, factor: float) -> Spread:
        """Scaled."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.n)


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles (linear between order statistics) of at least one value.

    >>> spread([4.0, 1.0, 2.0, 3.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0, n=5)
    """
    if not values:
        raise ValueError("values: expected at least one")
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times faster `ours` is: the spread of the ratios round by round.

    Rounds are neighbours in time, so a machine that slows down slows both sides of one ratio, and their median is
    steadier than the ratio of two medians. A side that has fewer rounds decides how many there are.
    """
    return spread([t / o for t, o in zip(theirs, ours, strict=False)])
