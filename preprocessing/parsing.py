"""Read Netflix's rating files (combined_data_*.txt, probe.txt) as arrays, exactly and in parallel.

The layout is a movie header `123:` on its own line, then one line `CustomerID,Stars,YYYY-MM-DD` (in probe.txt:
`CustomerID`) per rating. Read from its END, a rating line has all fields but the first at fixed places, so the
24 bytes that end a line are gathered for all lines of a block at once and taken apart as three 64-bit words.
No Python runs per rating; the files' ranges are dealt to one process per core.
"""

import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from preprocessing.dataset import DataError

# A parsed rating is one int64 "cell": user_id (37 bits) | day (22 bits) | stars (4 bits).
# Days count from 0000-01-01 of the proleptic Gregorian calendar, so that every written date is positive.
STARS_BITS, DAY_BITS, USER_ID_BITS = 4, 22, 37
MAX_ID_DIGITS = 11  # 99,999,999,999 fits in 37 bits

RANGE_BYTES = 8 << 20  # what one task of a process reads
BLOCK_BYTES = 1 << 19  # what is parsed at once: its arrays stay in the processor's cache
SLACK_BYTES = 64  # how far past a range its last line may reach; no legal line is as long

_NEWLINE, _RETURN, _COLON = 10, 13, 58
_PAD = b"\n" * 24  # so that the 24 bytes before a block's first line end exist

_MONTHS = np.arange("0000-01", "10000-02", dtype="M8[M]").astype("M8[D]")
DAY_ZERO = _MONTHS[0]
_MONTH_START = (_MONTHS - DAY_ZERO).astype(np.int32)  # day on which month 12 * year + month - 1 begins


@dataclass
class Parsed:
    """Lines of one byte range: `cells` int64 (R,), and the movie headers among them.

    Header k stands before cell `header_at[k]`; cells before the first belong to the previous range's movie.
    `error` is (byte offset of the first bad line, what is wrong with it), or None.
    """

    cells: np.ndarray
    header_ids: np.ndarray
    header_at: np.ndarray
    error: tuple[int, str] | None = None


@dataclass
class MovieRuns:
    """All cells of a set of files in file order, and the runs of equal movie_id they form (lengths sum to R)."""

    cells: np.ndarray  # int64 (R,)
    movie_ids: np.ndarray  # int64 (runs,)
    lengths: np.ndarray  # int64 (runs,)

    def blocks(self, num_rows: int = 1 << 20) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, movie_id int64 of each row) so that a column per rating never exists whole."""
        ends = np.cumsum(self.lengths)
        for start in range(0, len(self.cells), num_rows):
            stop = min(start + num_rows, len(self.cells))
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            runs = slice(first, last + 1)
            inside = np.minimum(ends[runs], stop) - np.maximum(ends[runs] - self.lengths[runs], start)
            yield slice(start, stop), np.repeat(self.movie_ids[runs], inside)


def parse_files(paths: list[Path], with_stars: bool = True, description: str = "parse") -> MovieRuns:
    """Parse rating files in the given order, on all cores, with a progress bar in bytes.

    Args:
        paths: combined_data files, or probe files (`with_stars=False`: a line is a user_id; day and stars are 0).

    Returns:
        The cells in file order and their movies; 8 bytes a rating.

    Raises:
        DataError: a line that is no header and no rating, with its file, line number and text.
        OSError: a file that cannot be read.
    """
    tasks = [(path, start, min(start + RANGE_BYTES, size), with_stars)
             for path in paths for size in [path.stat().st_size] for start in range(0, size, RANGE_BYTES)]
    num_bytes = sum(stop - start for _, start, stop, _ in tasks)
    shortest_line = len(b"1,5,2005-09-06\n") if with_stars else len(b"1\n")
    # Reserved for the most ratings that the bytes can hold; pages never written to are never real memory.
    cells = np.empty(num_bytes // shortest_line + len(paths), np.int64)
    num_cells, runs, current_path = 0, [], None
    with tqdm(total=num_bytes, desc=description, unit="B", unit_scale=True, leave=False) as bar:
        for (path, start, stop, _), parsed in zip(tasks, _parse_ranges(tasks, num_bytes), strict=True):
            if path != current_path:
                current_path, in_movie = path, False
            headless = len(parsed.cells) if not len(parsed.header_at) else parsed.header_at[0]
            if headless and not in_movie:
                offset = next_line_start(path, start)
                if parsed.error is None or offset < parsed.error[0]:
                    parsed.error = offset, "is a rating before the first movie header"
            if parsed.error is not None:
                raise bad_line(path, *parsed.error)
            cells[num_cells:num_cells + len(parsed.cells)] = parsed.cells
            if headless:
                runs[-1][1] += int(headless)
            lengths = np.diff(parsed.header_at, append=len(parsed.cells))
            runs += [[int(movie_id), int(length)]
                     for movie_id, length in zip(parsed.header_ids, lengths, strict=True)]
            in_movie = in_movie or len(parsed.header_at) > 0
            num_cells += len(parsed.cells)
            bar.update(stop - start)
    movie_ids, lengths = np.array(runs, np.int64).reshape(-1, 2).T
    return MovieRuns(cells[:num_cells], movie_ids.copy(), lengths.copy())


def user_ids_of(cells: np.ndarray) -> np.ndarray:
    """Return the user_id of each cell, int64."""
    return cells >> (DAY_BITS + STARS_BITS)


def days_of(cells: np.ndarray) -> np.ndarray:
    """Return the day of each cell, int64, counted from `DAY_ZERO`."""
    return (cells >> STARS_BITS) & ((1 << DAY_BITS) - 1)


def stars_of(cells: np.ndarray) -> np.ndarray:
    """Return the stars of each cell, int64."""
    return cells & ((1 << STARS_BITS) - 1)


def parse_range(path: Path, start: int, stop: int, with_stars: bool = True) -> Parsed:
    """Parse the lines of a file whose first byte lies in [start, stop)."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(start - 1, 0))
        text = file.read(min(stop + SLACK_BYTES, size) - file.tell())
        base = max(start - 1, 0)
    begin = 0 if start == 0 else text.find(b"\n") + 1
    if begin == 0 and start > 0:  # one overlong line covers the range; the range where it starts reports it
        return _join([])
    end = text.find(b"\n", max(stop - 1 - base, 0)) + 1
    if end == 0:
        if stop + SLACK_BYTES < size:
            parsed = _parse_text(text[begin:text.rfind(b"\n") + 1], base + begin, with_stars)
            parsed.error = parsed.error or (base + text.rfind(b"\n") + 1, "is longer than any rating line")
            return parsed
        text += b"\n"
        end = len(text)
    return _parse_text(text[begin:end], base + begin, with_stars)


def bad_line(path: Path, offset: int, problem: str) -> DataError:
    """Name the file, number and text of the line that starts at a byte offset, and what is wrong with it."""
    number = 1
    with open(path, "rb") as file:
        left = offset
        while left and (block := file.read(min(left, RANGE_BYTES))):
            number += block.count(b"\n")
            left -= len(block)
        text = file.readline(61).rstrip(b"\r\n")
    shown = ascii(text[:60].decode("latin-1")) + ("..." if len(text) > 60 else "")
    return DataError(f"{path}, line {number}: {shown} {problem}")


def find_lines(path: Path, movie_id: int, user_id: int) -> Iterator[tuple[Path, int]]:
    """Yield (path, byte offset) of each line about this movie and user, in a rating or probe file.

    A plain loop over lines: it runs only to say where a mistake stands.
    """
    current, offset = -1, 0
    with open(path, "rb") as file:
        for line in file:
            text = line.rstrip(b"\r\n")
            if text.endswith(b":"):
                current = int(text[:-1])
            elif current == movie_id and text and int(text.split(b",")[0]) == user_id:
                yield path, offset
            offset += len(line)


def next_line_start(path: Path, offset: int) -> int:
    """Return the offset of the first non-empty line that starts at or after a byte offset."""
    with open(path, "rb") as file:
        if offset:
            file.seek(offset - 1)
            file.readline()
        while (start := file.tell(), line := file.readline())[1] and not line.strip(b"\r\n"):
            pass
        return start


# --- processes -------------------------------------------------------------------------------------------------


def _parse_ranges(tasks: list[tuple], num_bytes: int) -> Iterable[Parsed]:
    """Yield the parsed tasks in order, from a process per core where the input is worth it."""
    num_processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
                        len(tasks))
    if num_processes < 2 or num_bytes < 2 * RANGE_BYTES:
        yield from (parse_range(*task) for task in tasks)
        return
    context = get_context("fork" if os.name == "posix" else "spawn")
    with ProcessPoolExecutor(num_processes, context, _start_worker, (os.getpid(),)) as pool:
        try:
            yield from pool.map(parse_range, *zip(*tasks, strict=True))
        except BrokenProcessPool:
            raise DataError("a parsing process was killed, probably for want of memory; "
                            "free some and run again") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker(parent_pid: int) -> None:
    """Leave Ctrl-C to the parent, and end with it should it be killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(0.5)
        os._exit(1)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


# --- bytes -----------------------------------------------------------------------------------------------------


def _parse_text(text: bytes, base: int, with_stars: bool) -> Parsed:
    """Parse whole lines in cache-sized blocks. `base` is the text's offset in its file."""
    blocks, begin = [], 0
    while begin < len(text):
        end = text.find(b"\n", min(begin + BLOCK_BYTES, len(text) - 1)) + 1
        blocks.append(_parse_block(text[begin:end], base + begin, with_stars))
        begin = end
        if blocks[-1].error is not None:
            break
    return _join(blocks)


def _join(blocks: list[Parsed]) -> Parsed:
    """Concatenate the blocks of a range."""
    starts = np.cumsum([0, *(len(block.cells) for block in blocks)])
    none = np.zeros(0, np.int64)
    return Parsed(np.concatenate([none, *(block.cells for block in blocks)]),
                  np.concatenate([none, *(block.header_ids for block in blocks)]),
                  np.concatenate([none, *(block.header_at + start for block, start in zip(blocks, starts))]),
                  next((block.error for block in blocks if block.error is not None), None))


def _parse_block(text: bytes, base: int, with_stars: bool) -> Parsed:
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
    return Parsed(cells, np.array([int(digits) for digits in header_ids], np.int64), header_at, error)


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
