"""Work on everybody in parts, so that a killed run goes on with what is missing and processes share it out.

A part is what some row groups of the ratings make: a parquet file in the hidden folder `.NAME.parts` beside the output,
each in its place in one step. plan.json beside them says what they are made from. When all are there, the first process
joins them, and removes the folder. Which process makes a part makes no difference to it.
"""

import contextlib
import errno
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from models.blend import STANDARD_ERRORS
from models.ops.ranks import Ranks
from preprocessing.dataset import CutShort, DataError, Ratings, lock_beside, locked, replaced
from recommending.recommender import Recommender

GROUPS_PER_PART = 16  # row groups of the ratings: on Netflix 10,000 users, a few seconds
PARQUET = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}  # vectors hardly shrink
Make = Callable[[Ratings], pa.Table]  # what the ratings of a row group make; called by several threads


def write_in_parts(recommender: Recommender, out: Path, what: dict, prepare: Callable[[], Make],
                   join: Callable[[list[Path]], None], ranks: Ranks) -> None:
    """Make what everybody's ratings make, in parts, and join them into `out`; all ranks call this.

    Args:
        recommender: of the run.
        out: the file or folder to write; it must not exist.
        what: is made, beside what the recommender says of itself: with parts of anything else it is not mixed.
        prepare: returns what makes a row group's table; it is called where parts are missing.
        join: puts the output, made of the parts in order, in its place; the first rank calls it.

    Raises:
        DataError: `out` exists or cannot be written, another run is writing it, what lies beside it was begun from
            something else, or another of the ranks has ended.
    """
    folder = out.with_name(f".{out.name}.parts")
    num_groups = len(recommender.ratings.group_starts) - 1
    parts = {folder / f"{group:06d}.parquet": range(group, min(group + GROUPS_PER_PART, num_groups))
             for group in range(0, num_groups, GROUPS_PER_PART)}
    try:
        with _held(out, folder) if ranks.is_main else contextlib.nullcontext():
            if ranks.is_main:
                _check_plan(folder, {"data_set": recommender.meta["fingerprint"], **what,
                                     "groups_per_part": GROUPS_PER_PART, "standard_errors": STANDARD_ERRORS,
                                     "as_of_training": recommender.as_of_training})
            missing = missing_parts(list(parts), ranks)
            own = {part: parts[part] for part in missing[ranks.rank::ranks.size]}
            if own:
                _write_parts(recommender, own, prepare(), ranks.is_main)
            ranks.wait()
            if ranks.is_main:
                join(list(parts))
                shutil.rmtree(folder)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        raise CutShort(f"{error.filename or out} cannot be written: {reason}") from None


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file: what is made from another one is not mixed with what is made from this."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing_parts(parts: list[Path], ranks: Ranks) -> list[Path]:
    """Return the parts that the first rank does not find, the same on all ranks, in order."""
    missing = torch.tensor([ranks.is_main and not part.exists() for part in parts], dtype=torch.int32)
    ranks.sum_(missing)
    return [part for part, is_missing in zip(parts, missing.tolist(), strict=True) if is_missing]


def read_part(part: Path) -> pa.Table:
    """Read a part; raise DataError if it is not as it was written."""
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as source:
            return source.read()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{part} is damaged ({error}); remove it and give the same command again") from None


@contextlib.contextmanager
def _held(out: Path, folder: Path) -> Iterator[None]:
    """Make the folder of the parts of an output, and hold both for this process."""
    if out.exists():
        raise DataError(f"{out} exists already; remove it, or name another place")
    if folder.is_symlink():  # in a folder from a stranger it could be one to anywhere
        folder.unlink()
    folder.mkdir(exist_ok=True)
    with locked(lock_beside(out), f"another run is writing {out}; wait for it, or name another place"):
        yield


def _check_plan(folder: Path, plan: dict) -> None:
    """Write down what the parts are made from; raise DataError if parts of something else lie there."""
    path = folder / "plan.json"
    if not path.exists():
        with replaced(path) as partial:
            partial.write_text(json.dumps(plan), encoding="utf-8")
        return
    try:
        begun = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        begun = {}
    changed = next((name for name, value in plan.items() if begun.get(name) != value), None)
    if changed is not None:
        raise DataError(f"{folder} was begun with another {changed}; go on with the same, or remove that folder to "
                        "start anew")


def _write_parts(recommender: Recommender, parts: dict[Path, range], make: Make, shown: bool) -> None:
    """Write parts, each of some row groups of the ratings."""
    groups = [group for of_part in parts.values() for group in of_part]
    last_groups = {of_part[-1]: part for part, of_part in parts.items()}
    first_user = np.searchsorted(recommender.users.offset, recommender.ratings.group_starts)  # of each row group
    num_users = np.diff(first_user)
    tables: list[pa.Table] = []
    with tqdm(total=int(num_users[groups].sum()), desc="everybody", unit=" users", unit_scale=True,
              disable=None if shown else True) as bar:
        for group, table in zip(groups, _by_groups(recommender, groups, make), strict=True):
            tables.append(table)
            if group in last_groups:
                with replaced(last_groups[group]) as partial:
                    pq.write_table(pa.concat_tables(tables), partial, **PARQUET)
                tables = []
            bar.update(int(num_users[group]))


def _by_groups(recommender: Recommender, groups: list[int], make: Make) -> Iterator[pa.Table]:
    """Yield what the ratings of some row groups make, in order.

    As many threads work as PyTorch may use, each on a row group: within every single operation, as PyTorch divides
    them, they would wait for each other most of the time.
    """
    num_threads = torch.get_num_threads()
    waiting: deque[Future] = deque()
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for group in groups:
            waiting.append(pool.submit(make, recommender.ratings.read_group(group, recommender.as_of_training)))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)
