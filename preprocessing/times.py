"""Times as people write them: seconds and parts of them, dates, dates with a time of day."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NO_TIME = np.iinfo(np.int64).min
EARLIEST_S, LATEST_S = 631_152_000, 4_102_444_800  # 1990 and 2100, in seconds since 1970
UNITS = {1: "seconds", 10**3: "thousandths of a second", 10**6: "millionths of a second",
         10**9: "billionths of a second"}
TIMES = {  # what pyarrow's reader of CSV makes of a text itself
    r"\d{1,19}": pa.int64(), r"\d{1,18}\.\d*": pa.float64(),
    r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?": pa.timestamp("s"),
}
DATE = r"^(?P<first>\d{1,4})[-/.](?P<second>\d{1,2})[-/.](?P<third>\d{1,4})(?:[ T,].*)?$"


def seconds_of(times: pa.ChunkedArray) -> tuple[np.ndarray, str]:
    """Return times as seconds since 1970, int64, NO_TIME where nobody could have meant them; and what to say of these.

    Numbers are dates as 20000730; or seconds, or thousandths, millionths or billionths of them, whichever makes the
    largest a time before 2100. Zeros alone, or empty cells, say nothing. Of a date and time the date counts, as it is
    written, whatever fraction, Z or offset stands behind it.

    Args:
        times: text, numbers or timestamps (R,), without nulls.
    """
    if pa.types.is_string(times.type):
        times = pc.utf8_trim_whitespace(times)
        are_numbers = pc.match_substring_regex(times, r"^\d{1,19}(\.\d*)?$")
        if not pc.any(pc.not_equal(times, "")).as_py():
            return np.zeros(len(times), np.int64), ""
        if np.asarray(are_numbers).mean() < 0.5:
            seconds = _seconds_of_dates(times)
            if seconds is None:
                return np.full(len(times), NO_TIME), "has a date: nothing tells whether month or day comes first"
            return _possible(seconds), "has a date that is none since 1990"
        times = pc.cast(pc.if_else(are_numbers, times, "-1"), pa.float64())
    if pa.types.is_timestamp(times.type):
        seconds = np.asarray(times).astype("datetime64[s]").astype(np.int64)
        return _possible(seconds), "has a date that is none since 1990"
    numbers = np.asarray(times)
    if not numbers.any():
        return np.zeros(len(numbers), np.int64), ""
    if numbers.min() >= 1900_01_01 and numbers.max() <= 2100_12_31:
        numbers = numbers.astype(np.int64)
        seconds = _seconds_of(numbers // 10_000, numbers // 100 % 100, numbers % 100)
        return _possible(seconds), "has a time that is none since 1990"
    unit = next((unit for unit in UNITS if numbers.max() < LATEST_S * unit), max(UNITS))
    seconds = np.floor_divide(numbers, unit).astype(np.int64)
    return _possible(seconds), f"has a time that is none since 1990 in {UNITS[unit]}"


def _seconds_of_dates(text: pa.ChunkedArray) -> np.ndarray | None:
    """Return dates, and whatever stands behind them, as seconds since 1970, int64, NO_TIME where there is none.

    Of 7/30/2000 and 30/7/2000 the month is the place in which no number of all exceeds 12; None if that is either.
    """
    fields = pc.extract_regex(text, DATE)
    first, second, third = (np.asarray(pc.cast(pc.fill_null(pc.struct_field(fields, name), "0"), pa.int64()))
                            for name in ("first", "second", "third"))
    if first.max() > 99:
        return _seconds_of(first, second, third)
    if first.max() <= 12 and second.max() <= 12 and (first != second).any():
        return None
    return _seconds_of(third, first, second) if second.max() > 12 >= first.max() else _seconds_of(third, second, first)


def _seconds_of(year: np.ndarray, month: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Return dates as seconds since 1970, NO_TIME where there is no such date."""
    sound = (year >= 1000) & (year <= 9999) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
    begin = ((np.where(sound, year, 1970) - 1970) * 12 + np.where(sound, month, 1) - 1).astype("datetime64[M]")
    date = begin.astype("datetime64[D]") + np.where(sound, day, 1) - 1
    sound &= date.astype("datetime64[M]") == begin
    return np.where(sound, date.astype("datetime64[s]").astype(np.int64), NO_TIME)


def _possible(seconds: np.ndarray) -> np.ndarray:
    """Return times, NO_TIME in place of those at which nobody has rated a movie for others."""
    return np.where((seconds >= EARLIEST_S) & (seconds < LATEST_S), seconds, NO_TIME)
