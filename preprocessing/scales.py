"""The scale of ratings: its ends and its step, found from all values.

A rating is stored as its number of steps from zero, so the steps of 1 to 5, of 0.5 to 5, of 0 to 100 and of -10 to 10
are told by one number. A step is the largest number of which every rating is a multiple.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DECIMALS = 9  # 0.1 + 0.2 is 0.3
MOST_STEPS = 256  # from the lowest to the highest rating
LARGEST = 2**15  # steps from zero to a rating, and a rating itself, lie below


class Scale(NamedTuple):
    """A scale of ratings."""

    low: float
    high: float
    step: float

    def stored(self, stars: np.ndarray) -> np.ndarray:
        """Return ratings, float (R,), as numbers of steps, int64 (R,)."""
        return np.round(stars / self.step).astype(np.int64)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g} in steps of {self.step:g}"


def find_scale(stars: np.ndarray, low: float | None = None, high: float | None = None) -> Scale:
    """Return the scale of ratings, float (R,), R > 0: its ends are the lowest and highest of them, unless given.

    Raises:
        OffScale: a rating lies outside the ends that are given, or they lie on no even scale.
        ValueError: all are the same, and no end is given.
    """
    distinct = np.sort(pc.unique(pa.array(stars)).to_numpy())
    for outside in (distinct[distinct < (-np.inf if low is None else low)],
                    distinct[distinct > (np.inf if high is None else high)]):
        if len(outside):
            raise OffScale(outside[0], f"lies outside the scale {_end(low)} to {_end(high)}")
    if abs(distinct).max() >= LARGEST:
        raise OffScale(distinct[abs(distinct).argmax()], f"is no rating: expected a number between -{LARGEST} and "
                       f"{LARGEST} on an even scale")
    low, high = (float(distinct[0]) if low is None else low), (float(distinct[-1]) if high is None else high)
    if low == high:
        raise ValueError(f"all {len(stars):,} ratings are {low:g}: there is nothing to learn from; if the scale is "
                         "wider, name its ends with --scale LOW:HIGH")
    fractions = [Fraction(str(value)) for value in distinct[:MOST_STEPS + 2].round(DECIMALS).tolist()]
    finest = max(range(len(fractions)), key=lambda k: fractions[k].denominator)
    denominator = math.lcm(*(value.denominator for value in fractions))
    step = Fraction(math.gcd(*(int(value * denominator) for value in fractions)) or denominator, denominator)
    if len(distinct) > MOST_STEPS + 1 or (distinct[-1] - distinct[0]) > MOST_STEPS * step or max(
            abs(distinct[0]), abs(distinct[-1])) >= LARGEST * step:
        value = distinct[finest if fractions[finest].denominator > 1 else -1]
        raise OffScale(value, f"lies on no even scale with the others: expected ratings of equal steps, at most "
                       f"{MOST_STEPS} from the lowest to the highest, such as 1 to 10, 0.5 to 5 or 0 to 100")
    return Scale(plain(low), plain(high), plain(float(step)))


class OffScale(ValueError):
    """A rating that cannot be; the caller knows where it stands."""

    def __init__(self, stars: float, problem: str) -> None:
        super().__init__(problem)
        self.stars = stars


def plain(number: float) -> float:
    """Return a whole number as an int, for meta.json."""
    return int(number) if number == int(number) else number


def _end(number: float | None) -> str:
    return ".." if number is None else f"{number:g}"
