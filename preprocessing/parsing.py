"""Read Netflix's rating files (combined_data_*.txt, probe.txt) as arrays, exactly and in parallel.

The layout is a movie header `123:` on its own line, then one line `CustomerID,Stars,YYYY-MM-DD` (in probe.txt:
`CustomerID`) per rating. One process per core parses ranges of bytes. To a range belong the lines that begin in it;
its ratings before its first header belong to the last movie of the range before.
"""

import os
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
from preprocessing.lines import Parsed, parse_block

RANGE_BYTES = 8 << 20  # read by one task of a process
BLOCK_BYTES = 1 << 19  # parsed at once: a block's arrays stay in the processor's cache
SLACK_BYTES = 64  # how far past a range its last line may reach; no legal line is as long


@dataclass
class MovieRuns:
    """All cells (R) of a set of files in file order, and the runs of equal movie_id they form."""

    cells: np.ndarray | Path  # int64 (R,), in memory or in a file of their bytes
    movie_ids: np.ndarray  # int64 (runs,)
    lengths: np.ndarray  # int64 (runs,), sum R

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def blocks(self, num_rows: int = 1 << 20) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield cells and the movie_id of each, int64 both, block by block; blocks in memory may be written to."""
        ends = np.cumsum(self.lengths)
        for start in range(0, len(self), num_rows):
            stop = min(start + num_rows, len(self))
            first, last = np.searchsorted(ends, [start, stop - 1], side="right")
            runs = slice(first, last + 1)
            num_cells = np.minimum(ends[runs], stop) - np.maximum(ends[runs] - self.lengths[runs], start)
            if isinstance(self.cells, Path):
                cells = np.fromfile(self.cells, np.int64, stop - start, offset=8 * start)
            else:
                cells = self.cells[start:stop]
            yield cells, np.repeat(self.movie_ids[runs], num_cells)


def parse_files(paths: list[Path], with_stars: bool = True, description: str = "parse",
                spill: Path | None = None) -> MovieRuns:
    """Parse rating files in the given order, on all cores, with a progress bar in bytes.

    Args:
        paths: combined_data files, or probe files (`with_stars=False`: a line is a user_id; day and stars are 0).
        spill: a file for the cells, where memory will not hold them.

    Returns:
        The cells in file order and their movies; 8 bytes a rating.

    Raises:
        DataError: a line that is no header and no rating, with its file, line number and text.
        OSError: a file that cannot be read.
    """
    tasks = [(path, start, min(start + RANGE_BYTES, file_bytes), with_stars)
             for path in paths for file_bytes in [path.stat().st_size] for start in range(0, file_bytes, RANGE_BYTES)]
    num_bytes = sum(stop - start for _, start, stop, _ in tasks)
    with (open(spill or os.devnull, "wb") as spilled,
          tqdm(total=num_bytes, desc=description, unit="B", unit_scale=True, leave=False) as bar):
        shortest_line = len(b"1,5,2005-09-06\n") if with_stars else len(b"1\n")
        # Room for the most ratings that the bytes can hold; pages never written to are never real memory.
        cells = np.empty(0 if spill else num_bytes // shortest_line + len(paths), np.int64)
        runs: list[list[int]] = []  # of [movie_id, number of cells]
        num_cells, current_path = 0, None
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
            if spill:
                parsed.cells.tofile(spilled)
            else:
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
    return MovieRuns(spill or cells[:num_cells], movie_ids.copy(), lengths.copy())


def parse_range(path: Path, start: int, stop: int, with_stars: bool = True) -> Parsed:
    """Parse the lines of a file whose first byte lies in [start, stop)."""
    with open(path, "rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        file.seek(max(start - 1, 0))
        text = file.read(min(stop + SLACK_BYTES, file_bytes) - file.tell())
        base = max(start - 1, 0)
    begin = 0 if start == 0 else text.find(b"\n") + 1
    if begin == 0 and start > 0:  # one overlong line covers the range; the range where it starts reports it
        return _join([])
    end = text.find(b"\n", max(stop - 1 - base, 0)) + 1
    if end == 0:
        if stop + SLACK_BYTES < file_bytes:
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
        remaining = offset
        while remaining and (block := file.read(min(remaining, RANGE_BYTES))):
            number += block.count(b"\n")
            remaining -= len(block)
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


def num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parse_ranges(tasks: list[tuple], num_bytes: int) -> Iterable[Parsed]:
    """Yield the parsed tasks in order; a process per core parses them where they are many."""
    num_processes = min(num_cores(), len(tasks))
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
    """Leave Ctrl-C to the parent, end by SIGTERM at once, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would turn it into one task's exception

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
        blocks.append(parse_block(text[begin:end], base + begin, with_stars))
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
