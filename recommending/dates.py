"""The one rule for the date of a question, which every list follows and says."""

import datetime
from dataclasses import dataclass

import numpy as np

from preprocessing.dataset import DataError, Id


@dataclass(frozen=True)
class AsOf:
    """The day that is asked about: that of a date, or the first or last of the data set where it lies outside, so that
    who asks as of today gets the newest list there is; the last day where there is no date."""

    day: int  # of the data set, from 0
    date: datetime.date | None = None  # of the day; None if nobody asked for one
    asked: datetime.date | None = None

    @classmethod
    def of(cls, date: datetime.date | None, meta: dict) -> "AsOf":
        """Return the day for a date and a data set.

        Raises:
            DataError: it is no date.
        """
        last, first = meta["num_days"] - 1, datetime.date.fromisoformat(meta["day_epoch"])
        if date is None:
            return cls(last)
        if not isinstance(date, datetime.date):
            raise DataError(f"{date!r} is no date; give a datetime.date, such as datetime.date(2005, 12, 10)")
        asked = datetime.date(date.year, date.month, date.day)  # of a time, its day
        day = min(max((asked - first).days, 0), last)
        return cls(day, first + datetime.timedelta(day), asked)

    def released(self, year: np.ndarray) -> np.ndarray:
        """Return which movies may be listed by their years, 0 where unknown, int (M,): none of a later one; bool
        (M,)."""
        return year <= (np.iinfo(np.int16).max if self.date is None else self.date.year)

    def remarks(self, num_later: int, nothing_rated: Id | None) -> list[str]:
        """Return sentences on what the date does to a list, for who reads it; none without a date.

        Args:
            num_later: movies that only their year keeps from the list.
            nothing_rated: the id of a user whose list it is and who had rated nothing by then.
        """
        if self.date is None or self.asked is None:
            return []
        remarks = []
        if self.date != self.asked:
            where, which = ("before", "first") if self.asked < self.date else ("after", "last")
            remarks.append(f"{self.asked} lies {where} the {which} day of the data set: the list is as of that day, "
                           f"{self.date}")
        if num_later:
            remarks.append(f"{num_later:,} movie{'' if num_later == 1 else 's'} of a later year than {self.date.year} "
                           f"{'is' if num_later == 1 else 'are'} left out")
        if nothing_rated is not None:
            remarks.append(f"user {nothing_rated} had rated no movie by {self.date}: by stars, the list is that of the "
                           "movies' means")
        return remarks
