"""Read Netflix's rating files (combined_data_*.txt, mv_*.txt, probe.txt) as arrays, exactly and in parallel.

The layout is a movie header `123:` on its own line, then one line `CustomerID,Stars,YYYY-MM-DD` (in probe.txt:
`CustomerID`) per rating. One process per core parses ranges of bytes. To a range belong the lines that begin in it;
its ratings before its first header belong to the last movie of the range before. What is compressed or in an archive
is read by one process, in order, and parsed by all.
"""

import itertools
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from preprocessing.dataset import DataError, machine
from preprocessing.dataset.machine import num_cores
from preprocessing.lines import Parsed, parse_block
from preprocessing.raw_files import (
    BYTE_ORDER_MARK,
    Member,
    RawFile,
    disk_file,
    open_file,
    open_files,
    read_blocks,
    size_of,
)

RANGE_BYTES = 8 << 20  # read by one task of a process
MEMBER_BYTES = 1 << 20  # of a member of an archive, read at once
BLOCK_BYTES = 1 << 19  # parsed at once: a block's arrays stay in the processor's cache
MOST_PROCESSES = 61  # Windows waits for no more
SLACK_BYTES = 64  # how far past a range its last line may reach; no legal line is as long
WAITING_TASKS = 2  # for each process; what was read of archives for them is in memory


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file that are parsed at once: a range of a plain file, or whole lines that were read already."""

    file: RawFile
    start: int
    stop: int
    text: bytes | None = None


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
            yield self.cells_of(start, stop), np.repeat(self.movie_ids[runs], num_cells)

    def cells_of(self, start: int, stop: int) -> np.ndarray:
        """Return a range of the cells, int64."""
        if isinstance(self.cells, Path):
            return np.fromfile(self.cells, np.int64, stop - start, offset=8 * start)
        return self.cells[start:stop]


def parse_files(files: Sequence[RawFile], with_stars: bool = True, description: str = "parse",
                spill: Path | None = None) -> MovieRuns:
    """Parse rating files in the given order, on all cores, with a progress bar in bytes.

    Args:
        files: rating files, or probe files (`with_stars=False`: a line is a user_id; day and stars are 0).
        spill: a file for the cells, where memory will not hold them.

    Returns:
        The cells in file order and their movies; 8 bytes a rating.

    Raises:
        DataError: a line that is no header and no rating, with its file, line number and text.
        OSError: a file that cannot be read.
    """
    num_bytes = sum(size_of(file) for file in files)
    with (open(spill or os.devnull, "wb") as spilled,
          tqdm(total=num_bytes, desc=description, unit="B", unit_scale=True, leave=False, disable=None) as bar):
        shortest_line = len(b"1,5,2005-09-06\n") if with_stars else len(b"1\n")
        # Room for the most ratings that the bytes can hold; pages never written to are never real memory.
        cells = np.empty(0 if spill else num_bytes // shortest_line + len(files), np.int64)
        runs: list[list[int]] = []  # of [movie_id, number of cells]
        num_cells, current_file = 0, None
        for piece, parsed in _parse_pieces(_cut(files), num_bytes, with_stars):
            if piece.file != current_file:
                current_file, in_movie = piece.file, False
            headless = len(parsed.cells) if not len(parsed.header_at) else parsed.header_at[0]
            if headless and not in_movie:
                parsed.error = parsed.first_line, "is a rating before the first movie header"
            if parsed.error is not None:
                raise bad_line(piece.file, *parsed.error)
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
            bar.update(piece.stop - piece.start)
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
        end = len(text)
    return _parse_text(text[begin:end], base + begin, with_stars)


def bad_line(raw_file: RawFile, offset: int, problem: str) -> DataError:
    """Name the file, number and text of the line that starts at a byte offset, and what is wrong with it."""
    number = 1
    with open_file(raw_file) as file:
        remaining = offset
        while remaining and (block := file.read(min(remaining, RANGE_BYTES))):
            number += block.count(b"\n")
            remaining -= len(block)
        text = file.readline(61).rstrip(b"\r\n")
    if b"\0" in text:
        problem = "is text in UTF-16; save the file as UTF-8"
    shown = ascii(text[:60].decode("latin-1")) + ("..." if len(text) > 60 else "")
    return DataError(f"{raw_file}, line {number}: {shown} {problem}")


def find_lines(files: Sequence[RawFile], movie_id: int, user_id: int) -> Iterator[tuple[RawFile, int]]:
    """Yield the file and byte offset of each line about this movie and user, in rating or probe files.

    A plain loop over lines: it runs only to say where a mistake stands.
    """
    for file, stream in open_files(files):
        current, offset = -1, 0
        for line in stream:
            text = line.removeprefix(b"" if offset else BYTE_ORDER_MARK).rstrip(b"\r\n")
            if text.endswith(b":"):
                current = int(text[:-1])
            elif current == movie_id and text and int(text.split(b",")[0]) == user_id:
                yield file, offset
            offset += len(line)


# --- processes -------------------------------------------------------------------------------------------------


def _cut(files: Sequence[RawFile]) -> Iterator[list[Piece]]:
    """Cut files into tasks of about RANGE_BYTES: pieces of one file or, where files are small, of many."""
    task: list[Piece] = []
    num_bytes = 0
    for is_wrapped, group in itertools.groupby(files, lambda file: isinstance(file, Member)):
        for piece in _cut_members(list(group)) if is_wrapped else _cut_plain(group):
            task.append(piece)
            num_bytes += piece.stop - piece.start
            if num_bytes >= RANGE_BYTES:
                yield task
                task, num_bytes = [], 0
    if task:
        yield task


def _cut_plain(paths: Iterable[RawFile]) -> Iterator[Piece]:
    """Cut plain files into ranges; whoever parses one reads it."""
    for path in paths:
        file_bytes = size_of(path)
        for start in range(0, file_bytes, RANGE_BYTES):
            yield Piece(path, start, min(start + RANGE_BYTES, file_bytes))


def _cut_members(members: list[RawFile]) -> Iterator[Piece]:
    """Read members of archives, one after the other, in pieces."""
    for file, offset, text in read_blocks(members, min(MEMBER_BYTES, RANGE_BYTES), SLACK_BYTES):
        yield Piece(file, offset, offset + len(text), text)


def _parse_pieces(tasks: Iterator[list[Piece]], num_bytes: int, with_stars: bool) -> Iterator[tuple[Piece, Parsed]]:
    """Yield the pieces of tasks in order, parsed; a process per core parses them where they are many."""
    num_processes = min(num_cores(), -(-num_bytes // RANGE_BYTES), MOST_PROCESSES)
    if num_processes < 2 or num_bytes < 2 * RANGE_BYTES:
        for task in tasks:
            yield from zip(task, _parse_task(_sources(task), with_stars), strict=True)
        return
    with ProcessPoolExecutor(num_processes, get_context(machine.start_method()), _start_worker, (os.getpid(),)) as pool:
        waiting: deque[tuple[list[Piece], Future]] = deque()

        def first() -> Iterator[tuple[Piece, Parsed]]:
            task, future = waiting.popleft()
            return zip(task, future.result(), strict=True)

        try:
            for task in tasks:
                future = pool.submit(_parse_task, _sources(task), with_stars)
                waiting.append(([Piece(piece.file, piece.start, piece.stop) for piece in task], future))
                if len(waiting) >= WAITING_TASKS * num_processes:
                    yield from first()
            while waiting:
                yield from first()
        except BrokenProcessPool:
            raise DataError("a parsing process was killed, probably for want of memory; "
                            "free some and run again") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _sources(task: list[Piece]) -> list[tuple[Path | bytes, int, int]]:
    """Return what a process needs to know of a task: a range and its file, or the text."""
    return [(disk_file(piece.file) if piece.text is None else piece.text, piece.start, piece.stop) for piece in task]


def _parse_task(sources: list[tuple[Path | bytes, int, int]], with_stars: bool) -> list[Parsed]:
    """Parse the pieces of a task."""
    return [_parse_text(source, start, with_stars) if isinstance(source, bytes)
            else parse_range(source, start, stop, with_stars) for source, start, stop in sources]


def _start_worker(parent_pid: int) -> None:
    """Leave Ctrl-C to the parent, end by SIGTERM at once, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would turn it into one task's exception

    def watch() -> None:
        while machine.has_parent(parent_pid):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- bytes -----------------------------------------------------------------------------------------------------


def _parse_text(text: bytes, base: int, with_stars: bool) -> Parsed:
    """Parse lines in cache-sized blocks; the last one may lack its end. `base` is the text's offset in its file."""
    text = text if text.endswith(b"\n") else text + b"\n"
    blocks, begin = [], len(BYTE_ORDER_MARK) if base == 0 and text.startswith(BYTE_ORDER_MARK) else 0
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
                  next((block.error for block in blocks if block.error is not None), None),
                  min((block.first_line for block in blocks if block.first_line >= 0), default=-1))
