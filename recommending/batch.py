"""Everybody at once: the lists of all users of a data set as one file, and all vectors as arrays.

    rec.py --all_users --out recs.parquet    user_id, rank (from 1), movie_id, stars (float32, as rec.py prints them);
                                             --out recs.csv has the same columns as text
    rec.py --export_vectors DIR              user_ids.npy, user_vectors.npy, movie_ids.npy, movie_vectors.npy,
                                             margins.npy, and vectors.json, which says what their coordinates are

A thread takes a row group of the ratings, makes its users' vectors and finds their best movies (top_k.py). The lists of
some row groups are written as a part, a file in a hidden folder beside the output. A killed run goes on with the parts
that are missing, and the output appears whole, in one step. Started by torchrun, the processes share out the parts, or
the row groups of the vectors; the first one joins them.
"""

import datetime
import hashlib
import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pyarrow import csv
from tqdm import tqdm

from models.blend import STANDARD_ERRORS
from models.ops.ranks import ALONE, Ranks, leave, start
from preprocessing.dataset import DataError, Ratings, lock_beside, locked, replaced, sync
from recommending.recommender import Recommender
from recommending.top_k import BestProducts

__all__ = ["export_vectors", "leave", "recommend_all", "start"]

GROUPS_PER_PART = 16  # row groups of the ratings: on Netflix 10,000 users, a few seconds
USERS_PER_BLOCK = 1024  # users of one product, in each thread: mostly all of a row group
BUSY = "another run is writing {}; wait for it, or name another place"
PARQUET = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}


def recommend_all(recommender: Recommender, out: Path, top_n: int, checkpoint: Path,
                  ranks: Ranks = ALONE) -> tuple[int, int]:
    """Write the list of every user of the data set to a parquet file; return how many have one, and how many have
    nothing left that could be listed.

    What an interrupted call has finished is kept beside `out`, and the next call with the same arguments goes on.

    Args:
        recommender: of the run.
        out: the file to write; it must not exist.
        top_n: movies a user; fewer where they have rated all others.
        checkpoint: the file the recommender was loaded from: what was begun with another one is not mixed with it.
        ranks: all of which call this; where this is not the first one, the numbers are 0.

    Raises:
        DataError: `out` exists or cannot be written, another run is writing it, what lies beside it was begun with
            other arguments, or another of the ranks has ended.
    """
    folder = out.with_name(f".{out.name}.parts")
    try:
        if not ranks.is_main:
            ranks.wait()
            _write_parts(recommender, folder, top_n, ranks)
            ranks.wait()
            return 0, 0
        if out.exists():
            raise DataError(f"{out} exists already; remove it, or name another file with --out")
        folder.mkdir(exist_ok=True)
        with locked(lock_beside(out), BUSY.format(out)):
            with open(checkpoint, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            _check_plan(folder, {"data_set": recommender.meta["fingerprint"], "run": digest, "top_n": top_n,
                                 "groups_per_part": GROUPS_PER_PART, "standard_errors": STANDARD_ERRORS,
                                 "as_of_training": recommender.as_of_training})
            ranks.wait()
            parts = _write_parts(recommender, folder, top_n, ranks)
            ranks.wait()
            num_lists = _join(parts, out)
            shutil.rmtree(folder)
            return num_lists, len(recommender.users.user_id) - num_lists
    except OSError as error:
        raise DataError(f"{error.filename or out} cannot be written ({error.strerror or error}); the same command goes "
                        "on from what is done") from None


def lists_of(recommender: Recommender, ratings: Ratings, best_products: BestProducts) -> pa.Table:
    """Return the lists of some users of the data set that follow each other.

    Args:
        recommender: of the run.
        ratings: all that these users have given (R), with the split where the recommender is as of training.
        best_products: among the recommender's `list_vectors`.
    """
    tables = []
    for users, block in _blocks_of_users(recommender, ratings):
        seen = torch.from_numpy(block.movie_idx.astype(np.int64))
        counts = np.bincount(block.user_idx - users.start, minlength=len(users))
        indptr = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
        best, movie_idx = best_products.find(recommender.vectors_of(users, block), indptr, seen)
        listed = best > -torch.inf  # (B, N)
        user, rank = listed.nonzero(as_tuple=True)
        tables.append(pa.table({
            "user_id": recommender.users.user_id[users.start + user.numpy()],
            "rank": rank.numpy().astype(np.int32) + 1,
            "movie_id": recommender.movies.movie_id[movie_idx[listed].numpy()],
            "stars": recommender.model.stars(best[listed] + recommender.model.margins()[movie_idx[listed]]).numpy(),
        }))
    return pa.concat_tables(tables)


def vectors_of(recommender: Recommender, ratings: Ratings) -> torch.Tensor:
    """Return the vectors of users of the data set that follow each other, float (B, P), from all their ratings (R)."""
    return torch.cat([recommender.vectors_of(*block) for block in _blocks_of_users(recommender, ratings)])


def best_products_of(recommender: Recommender, top_n: int) -> BestProducts:
    """Return what finds everybody's best movies, fitted to the users of the first row group."""
    sample = vectors_of(recommender, recommender.ratings.read_group(0, recommender.as_of_training))
    return BestProducts(recommender.list_vectors, recommender.recommendable, sample, top_n)


def export_vectors(recommender: Recommender, folder: Path, ranks: Ranks = ALONE) -> tuple[int, int]:
    """Write the vectors of all users and of all movies with training ratings; return how many of each.

    The inner product of a row of user_vectors.npy (U, P) and one of movie_vectors.npy (M, P), float32, is the score by
    which lists are ordered; with margins.npy (M,) added it is that of the prediction. The ids are in user_ids.npy (U,)
    and movie_ids.npy (M,). vectors.json says how stars come of the score, and which of the P coordinates are biases
    and constants. The folder appears whole, in one step. All `ranks` call this.

    Raises:
        DataError: the folder exists or cannot be written, or another of the ranks has ended.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    user_ids, known = recommender.users.user_id, recommender.recommendable
    try:
        if not ranks.is_main:
            ranks.wait()
            _fill(np.lib.format.open_memmap(partial / "user_vectors.npy", "r+"), recommender, ranks)
            ranks.wait()
            return len(user_ids), int(known.sum())
        if folder.exists():
            raise DataError(f"{folder} exists already; remove it, or name another folder with --export_vectors")
        partial.mkdir(exist_ok=True)
        with locked(lock_beside(folder), BUSY.format(folder)):
            np.save(partial / "movie_ids.npy", recommender.movies.movie_id[known.numpy()])
            np.save(partial / "movie_vectors.npy", recommender.list_vectors[known].numpy())
            np.save(partial / "margins.npy", recommender.model.margins()[known].numpy())
            np.save(partial / "user_ids.npy", user_ids)
            (partial / "vectors.json").write_text(json.dumps(_description(recommender), indent=1) + "\n",
                                                  encoding="utf-8")
            vectors = np.lib.format.open_memmap(partial / "user_vectors.npy", "w+", np.float32,
                                                (len(user_ids), recommender.list_vectors.shape[1]))
            ranks.wait()
            _fill(vectors, recommender, ranks)
            del vectors  # which maps its file: Windows moves no folder with one in use
            ranks.wait()
            for path in partial.iterdir():
                sync(path)
            partial.rename(folder)
            sync(folder.absolute().parent)
            return len(user_ids), int(known.sum())
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be written ({error.strerror or error})") from None


def _description(recommender: Recommender) -> dict:
    """Return what vectors.json holds: how scores and stars come of the vectors, and what their coordinates are."""
    day = datetime.date.fromisoformat(recommender.meta["day_epoch"]) + datetime.timedelta(recommender.day)
    link = recommender.model.link
    return {"score": "user_vectors[u] @ movie_vectors[m]",
            "prediction": "score + margins[m], which is two standard errors of what a movie's ratings say of it",
            "stars": f"{link.low:g} + {link.step:g} * sum over thresholds of "
                     "1 / (1 + exp(threshold - slope * prediction))",
            "slope": float(link.slope), "thresholds": link.thresholds.tolist(),
            "as_of": str(day), "as_of_training": recommender.as_of_training,
            "blocks": recommender.model.coordinates()}


def _fill(vectors: np.memmap, recommender: Recommender, ranks: Ranks) -> None:
    """Write the users' vectors of this rank's row groups into a mapped file, float32 (U, P)."""
    groups = range(ranks.rank, len(recommender.ratings.group_starts) - 1, ranks.size)
    with tqdm(total=len(vectors) // ranks.size, desc="vectors", unit=" users", unit_scale=True,
              disable=None if ranks.is_main else True) as bar:
        for users, found in _by_groups(recommender, groups, vectors_of):
            vectors[users.start:users.stop] = found.numpy()
            bar.update(len(users))
    vectors.flush()


def _write_parts(recommender: Recommender, folder: Path, top_n: int, ranks: Ranks) -> list[Path]:
    """Write those of this rank's parts that are not there yet; return the parts of all ranks, in order."""
    num_groups = len(recommender.ratings.group_starts) - 1
    parts = {folder / f"{group:06d}.parquet": range(group, min(group + GROUPS_PER_PART, num_groups))
             for group in range(0, num_groups, GROUPS_PER_PART)}
    own = list(parts)[ranks.rank::ranks.size]
    missing = [part for part in own if not part.exists()]
    groups = [group for part in missing for group in parts[part]]
    tables: list[pa.Table] = []
    first_user = np.searchsorted(recommender.users.offset, recommender.ratings.group_starts)  # of each row group
    num_users = {part: int(first_user[parts[part].stop] - first_user[parts[part].start]) for part in own}
    with tqdm(total=sum(num_users.values()), initial=sum(num_users[part] for part in own if part not in missing),
              desc="recommend", unit=" users", unit_scale=True, disable=None if ranks.is_main else True) as bar:
        try:
            best_products = best_products_of(recommender, top_n) if missing else None
            lists = _by_groups(recommender, groups, lists_of, best_products)
            for group, (users, table) in zip(groups, lists, strict=True):
                tables.append(table)
                if group == parts[missing[0]][-1]:
                    with replaced(missing.pop(0)) as partial:
                        pq.write_table(pa.concat_tables(tables), partial, **PARQUET)
                    tables = []
                bar.update(len(users))
        except KeyboardInterrupt:
            kept = sum(part.exists() for part in parts)
            bar.write(f"interrupted: {kept} of {len(parts)} parts are kept; the same command goes on from there",
                      file=sys.stderr)
            raise
    return list(parts)


def _by_groups(recommender: Recommender, groups: Iterable[int], work: Callable,
               *args: object) -> Iterator[tuple[range, Any]]:
    """Yield (range of user_idx, what `work` makes of their ratings) for some row groups of the ratings, in order.

    As many threads work as PyTorch may use, each on a row group: within every single operation, as PyTorch divides
    them, they would wait for each other most of the time.
    """
    num_threads = torch.get_num_threads()
    waiting: deque[tuple[range, Future]] = deque()
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for group in groups:
            ratings = recommender.ratings.read_group(group, recommender.as_of_training)
            users = range(int(ratings.user_idx[0]), int(ratings.user_idx[-1]) + 1)
            waiting.append((users, pool.submit(work, recommender, ratings, *args)))
            if len(waiting) > num_threads:
                users, future = waiting.popleft()
                yield users, future.result()
        for users, future in waiting:
            yield users, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


def _blocks_of_users(recommender: Recommender, ratings: Ratings) -> Iterator[tuple[range, Ratings]]:
    """Yield a block of whole users that follow each other at a time, and those of their ratings that are known."""
    start, stop = int(ratings.user_idx[0]), int(ratings.user_idx[-1]) + 1
    for first in range(start, stop, USERS_PER_BLOCK):
        users = range(first, min(first + USERS_PER_BLOCK, stop))
        rows = recommender.users.offset[[users.start, users.stop]] - recommender.users.offset[start]
        yield users, recommender.known(ratings.subset(slice(*rows.tolist())))


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


def _join(parts: list[Path], out: Path) -> int:
    """Copy the parts into one file, and put it in its place; return the number of lists in it."""
    num_lists = 0
    schema, as_csv = pq.read_schema(parts[0]), out.suffix.lower() == ".csv"
    with replaced(out) as partial, open(partial, "wb") as file:
        if as_csv:
            file.write(",".join(schema.names).encode() + b"\n")
        with (csv.CSVWriter(file, schema, write_options=csv.WriteOptions(include_header=False)) if as_csv
              else pq.ParquetWriter(file, schema, **PARQUET)) as writer:
            for part in parts:
                try:
                    with pq.ParquetFile(part, page_checksum_verification=True) as source:
                        table = source.read()
                except (pa.ArrowException, OSError) as error:
                    raise DataError(f"{part} is damaged ({error}); remove it and give the same command "
                                    "again") from None
                num_lists += pc.sum(pc.equal(table["rank"], 1)).as_py() or 0
                if as_csv:
                    writer.write_table(table)
                else:
                    writer.write_table(table, row_group_size=max(len(table), 1))
    sync(out.absolute().parent)
    return num_lists
