"""Parse a block of whole lines: movie headers and ratings, or the user ids of a probe file.

Read from its END, a rating line `CustomerID,Stars,YYYY-MM-DD` has all fields but the first at fixed positions. So the
24 bytes that end a line are gathered for all lines of the block at once, as three little-endian 64-bit words, and their
digits are combined by arithmetic on whole words. No Python runs per rating.
"""

import re
from dataclasses import dataclass

import numpy as np

# A parsed rating is one int64 "cell": user_id (37 bits) | day (22 bits) | stars (4 bits).
# Days count from 0000-01-01 of the proleptic Gregorian calendar, so that every written date is positive.
STARS_BITS, DAY_BITS = 4, 22
MAX_ID_DIGITS = 11  # 99,999,999,999 fits in 37 bits

_NEWLINE, _RETURN, _COLON = 10, 13, 58
_PAD = b"\n" * 24  # so that the 24 bytes before a block's first line end exist

_MONTHS = np.arange("0000-01", "10000-02", dtype="M8[M]").astype("M8[D]")
DAY_ZERO = _MONTHS[0]
_MONTH_START = (_MONTHS - DAY_ZERO).astype(np.int32)  # day on which month 12 * year + month - 1 begins

_PROBLEMS = {
    1: "is no rating line (user_id,stars,YYYY-MM-DD) and no movie header (movie_id:)",
    2: "has stars outside 1 to 5",
    3: "has an impossible date",
    4: "is no user_id and no movie header (movie_id:)",
    5: "is no movie header (a number below 2147483648 and a colon)",
}
_HAS_OTHER_STARS = re.compile(rb"\d+,[-+.\d]+,\d{4}-\d\d-\d\d")

_MASK_8 = np.array([(2**64 - 1) ^ (2 ** (64 - 8 * n) - 1) for n in range(9)], np.uint64)  # keep the last n bytes
_MASK_3 = np.array([0xFFFFFF ^ (2 ** (24 - 8 * n) - 1) for n in range(4)], np.uint64)
_LOW_BYTES = np.uint64(0x000000FF000000FF)


@dataclass
class Parsed:
    """Lines of one byte range: `cells` int64 (R,), and the movie headers among them.

    Header k stands before cell `header_at[k]`; cells before the first belong to the previous range's movie.
    `error` is (byte offset of the first bad line, what is wrong with it), or None. `first_line` is the byte offset of
    the first line that is not empty, -1 if there is none.
    """

    cells: np.ndarray
    header_ids: np.ndarray
    header_at: np.ndarray
    error: tuple[int, str] | None = None
    first_line: int = -1


def user_ids_of(cells: np.ndarray) -> np.ndarray:
    """Return the user_id of each cell, int64."""
    return cells >> (DAY_BITS + STARS_BITS)


def days_of(cells: np.ndarray) -> np.ndarray:
    """Return the day of each cell, int64, counted from `DAY_ZERO`."""
    return (cells >> STARS_BITS) & ((1 << DAY_BITS) - 1)


def stars_of(cells: np.ndarray) -> np.ndarray:
    """Return the stars of each cell, int64."""
    return cells & ((1 << STARS_BITS) - 1)


def parse_block(text: bytes, base: int, with_stars: bool) -> Parsed:
    """Parse whole lines (the last byte is a newline). At a bad line, keep what stands before it."""
    data = np.frombuffer(_PAD + text, np.uint8)
    line_ends = np.flatnonzero(data == _NEWLINE)[len(_PAD) - 1:]
    line_starts = line_ends[:-1] + 1
    ends = line_ends[1:]
    if b"\r" in text:
        ends = ends - (data[ends - 1] == _RETURN)
    lengths = ends - line_starts
    if not lengths.all():  # empty lines say nothing
        line_starts, ends, lengths = (column[lengths > 0] for column in (line_starts, ends, lengths))

    is_header = data[ends - 1] == _COLON
    headers = np.flatnonzero(is_header)
    rows = slice(None) if not len(headers) else ~is_header
    words = _last_24_bytes(data, ends[rows])
    parse = _parse_ratings if with_stars else _parse_user_ids
    cells, problems = parse(words, lengths[rows])

    header_at = headers - np.arange(len(headers))
    header_ids = [text[start - len(_PAD):end - 1 - len(_PAD)]
                  for start, end in zip(line_starts[headers], ends[headers], strict=True)]
    error = None
    bad_headers = [k for k, digits in enumerate(header_ids)
                   if not (digits.isdigit() and len(digits) <= 10 and int(digits) < 2**31)]
    bad_rows = np.flatnonzero(problems)
    if len(bad_rows) or bad_headers:
        row_lines = np.arange(len(ends))[rows]
        lines = [(int(row_lines[bad_rows[0]]), int(problems[bad_rows[0]]))] if len(bad_rows) else []
        lines += [(int(headers[bad_headers[0]]), 5)] if bad_headers else []
        line, problem = min(lines)
        if problem == 1 and _HAS_OTHER_STARS.fullmatch(data[line_starts[line]:ends[line]].tobytes()):
            problem = 2
        error = base + int(line_starts[line]) - len(_PAD), _PROBLEMS[problem]
        cells, header_ids = cells[:line - np.searchsorted(headers, line)], header_ids[:np.searchsorted(headers, line)]
        header_at = header_at[:len(header_ids)]
    first_line = base + int(line_starts[0]) - len(_PAD) if len(line_starts) else -1
    return Parsed(cells, np.array([int(digits) for digits in header_ids], np.int64), header_at, error, first_line)


def _last_24_bytes(data: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Gather the 24 bytes before each end as three little-endian words, uint64 (R, 3)."""
    windows = np.ndarray(len(data) - 23, "V24", data, strides=(1,))
    return windows[ends - 24].view("<u8").reshape(-1, 3)


def _parse_ratings(words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn lines `...id,S,YYYY-MM-DD`, seen as `IIIIIIII` `iii,S,YY` `YY-MM-DD`, into cells and problem codes."""
    id_digits = lengths - len(b",5,2005-09-06")
    malformed = (id_digits < 1) | (id_digits > MAX_ID_DIGITS)
    if malformed.any():
        id_digits = np.clip(id_digits, 0, MAX_ID_DIGITS)
    high = (words[:, 0] ^ _word(b"00000000")) & _MASK_8[np.maximum(id_digits - 3, 0)]
    middle = words[:, 1] ^ _word(b"000,0,00")
    middle &= _MASK_3[np.minimum(id_digits, 3)] | np.uint64(0xFFFFFFFFFF000000)
    date = words[:, 2] ^ _word(b"00-00-00")
    # A byte above its limit (9 for a digit, 0 for a separator) carries into its top bit.
    beyond = high | (high + _limits(b"99999999"))
    beyond |= middle | (middle + _limits(b"999,9,99"))
    beyond |= date | (date + _limits(b"99-99-99"))
    malformed |= (beyond & np.uint64(0x8080808080808080)) != 0

    user_id = _eight_digits(high) * np.uint64(1000) + _three_digits(middle)
    stars = (middle >> np.uint64(32)) & np.uint64(0xFF)
    century = _byte(middle, 6) * np.uint64(10) + _byte(middle, 7)
    pairs = date * np.uint64(10) + (date >> np.uint64(8))  # two-digit numbers at bytes 0, 3 and 6
    year = century * np.uint64(100) + _byte(pairs, 0)
    month, day = _byte(pairs, 3), _byte(pairs, 6)
    in_table = np.minimum(year * np.uint64(12) + month - np.uint64(1), np.uint64(len(_MONTH_START) - 2)).view(np.int64)
    month_start = _MONTH_START[in_table]
    impossible = (year == 0) | (month - np.uint64(1) > 11) | (day == 0)
    impossible |= day.view(np.int64) > _MONTH_START[in_table + 1] - month_start

    problems = np.where(impossible, np.uint8(3), np.uint8(0))
    problems[stars - np.uint64(1) > 4] = 2
    problems[malformed] = 1
    date = (month_start + day.view(np.int64) - 1).view(np.uint64)
    cells = user_id << np.uint64(DAY_BITS + STARS_BITS) | date << np.uint64(STARS_BITS) | stars
    return cells.view(np.int64), problems


def _parse_user_ids(words: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn lines that are a user_id alone into cells with day and stars 0, and problem codes."""
    malformed = lengths > MAX_ID_DIGITS
    high = (words[:, 1] ^ _word(b"00000000")) & _MASK_8[np.clip(lengths - 8, 0, 8)]
    low = (words[:, 2] ^ _word(b"00000000")) & _MASK_8[np.minimum(lengths, 8)]
    beyond = (high | (high + _limits(b"99999999"))) | (low | (low + _limits(b"99999999")))
    malformed |= (beyond & np.uint64(0x8080808080808080)) != 0
    user_id = _eight_digits(high) * np.uint64(10**8) + _eight_digits(low)
    return (user_id << np.uint64(DAY_BITS + STARS_BITS)).view(np.int64), np.where(malformed, np.uint8(4), np.uint8(0))


def _word(text: bytes) -> np.uint64:
    """Return eight characters as one little-endian word."""
    return np.frombuffer(text, "<u8")[0]


def _limits(layout: bytes) -> np.uint64:
    """Return what, added to a word of digit values, sets the top bit of each byte that breaks the layout."""
    return _word(bytes(0x76 if character == ord("9") else 0x7F for character in layout))


def _byte(word: np.ndarray, index: int) -> np.ndarray:
    """Return one byte of each word."""
    return (word >> np.uint64(8 * index)) & np.uint64(0xFF)


def _three_digits(word: np.ndarray) -> np.ndarray:
    """Return the number written in bytes 0 to 2 of each word of digit values."""
    return (_byte(word, 0) * np.uint64(10) + _byte(word, 1)) * np.uint64(10) + _byte(word, 2)


def _eight_digits(word: np.ndarray) -> np.ndarray:
    """Return the number written in the eight bytes of each word of digit values, most significant first."""
    pairs = word * np.uint64(10) + (word >> np.uint64(8))
    return ((pairs & _LOW_BYTES) * np.uint64(0x000F424000000064)
            + ((pairs >> np.uint64(16)) & _LOW_BYTES) * np.uint64(0x0000271000000001)) >> np.uint64(32)
