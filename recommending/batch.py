"""Everybody at once: the lists of all users of a data set as one file, and all vectors as arrays.

    rec.py --all_users --out recs.parquet    user_id, rank (from 1), movie_id, stars (float32, as rec.py prints them);
                                             --out recs.csv has the same columns as text
    rec.py --export_vectors DIR              user_ids.npy, user_vectors.npy, movie_ids.npy, movie_vectors.npy,
                                             margins.npy, and vectors.json, which says what their coordinates are

A thread takes a row group of the ratings, makes its users' vectors and finds their best movies (top_k.py). Both are
made in parts (parts.py): a killed run goes on with those that are missing, processes of torchrun share them out, and
the output appears whole, in one step.
"""

import datetime
import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pyarrow import csv

from models.ops.ranks import ALONE, Ranks, joined, leave
from preprocessing.dataset import Ratings, replaced, sync
from recommending.parts import Make, digest_of, read_part, write_in_parts
from recommending.recommender import Recommender
from recommending.top_k import BestProducts

__all__ = ["export_vectors", "joined", "leave", "recommend_all"]

PARQUET = {"compression": "zstd", "use_dictionary": False, "write_page_checksum": True}
USERS_PER_BLOCK = 1024  # users of one product, in each thread: mostly all of a row group


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
    num_lists = 0

    def prepare() -> Make:
        best_products = best_products_of(recommender, top_n)
        return lambda ratings: lists_of(recommender, ratings, best_products)

    def join(parts: list[Path]) -> None:
        nonlocal num_lists
        num_lists = _join_lists(parts, out)

    what = {"run": digest_of(checkpoint), "kind": "lists", "top_n": top_n}
    write_in_parts(recommender, out, what, prepare, join, ranks)
    return (num_lists, len(recommender.users.user_id) - num_lists) if ranks.is_main else (0, 0)


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


def table_of_vectors(recommender: Recommender, ratings: Ratings) -> pa.Table:
    """Return `vectors_of` as a table of one column."""
    vectors = vectors_of(recommender, ratings)
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(vectors.numpy().reshape(-1), vectors.shape[1])})


def best_products_of(recommender: Recommender, top_n: int) -> BestProducts:
    """Return what finds everybody's best movies, fitted to the users of the first row group."""
    sample = vectors_of(recommender, recommender.ratings.read_group(0, recommender.as_of_training))
    return BestProducts(recommender.list_vectors, recommender.recommendable, sample, top_n)


def export_vectors(recommender: Recommender, folder: Path, checkpoint: Path,
                   ranks: Ranks = ALONE) -> tuple[int, int]:
    """Write the vectors of all users and of all movies with training ratings; return how many of each.

    The inner product of a row of user_vectors.npy (U, P) and one of movie_vectors.npy (M, P), float32, is the score by
    which lists are ordered; with margins.npy (M,) added it is that of the prediction. The ids are in user_ids.npy (U,)
    and movie_ids.npy (M,). vectors.json says how stars come of the score, and which of the P coordinates are biases
    and constants. The folder appears whole, in one step; an interrupted call is gone on with as by `recommend_all`,
    whose `checkpoint` and `ranks` these are.

    Raises:
        DataError: as `recommend_all`.
    """
    write_in_parts(recommender, folder, {"run": digest_of(checkpoint), "kind": "vectors"},
                   lambda: partial(table_of_vectors, recommender), partial(_join_vectors, recommender, folder), ranks)
    return len(recommender.users.user_id), int(recommender.recommendable.sum())


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


def _blocks_of_users(recommender: Recommender, ratings: Ratings) -> Iterator[tuple[range, Ratings]]:
    """Yield a block of whole users that follow each other at a time, and those of their ratings that are known."""
    start, stop = int(ratings.user_idx[0]), int(ratings.user_idx[-1]) + 1
    for first in range(start, stop, USERS_PER_BLOCK):
        users = range(first, min(first + USERS_PER_BLOCK, stop))
        rows = recommender.users.offset[[users.start, users.stop]] - recommender.users.offset[start]
        yield users, recommender.known(ratings.subset(slice(*rows.tolist())))


def _join_lists(parts: list[Path], out: Path) -> int:
    """Copy the parts into one file, and put it in its place; return the number of lists in it."""
    num_lists = 0
    schema, as_csv = pq.read_schema(parts[0]), out.suffix.lower() == ".csv"
    with replaced(out) as partly, open(partly, "wb") as file:
        if as_csv:
            file.write(",".join(schema.names).encode() + b"\n")
        with (csv.CSVWriter(file, schema, write_options=csv.WriteOptions(include_header=False)) if as_csv
              else pq.ParquetWriter(file, schema, **PARQUET)) as writer:
            for table in map(read_part, parts):
                num_lists += pc.sum(pc.equal(table["rank"], 1)).as_py() or 0
                if as_csv:
                    writer.write_table(table)
                else:
                    writer.write_table(table, row_group_size=max(len(table), 1))
    sync(out.absolute().parent)
    return num_lists


def _join_vectors(recommender: Recommender, folder: Path, parts: list[Path]) -> None:
    """Write the files of `export_vectors` beside the parts, and put their folder in its place."""
    user_ids, known = recommender.users.user_id, recommender.recommendable
    partly = parts[0].with_name("joined")
    shutil.rmtree(partly, ignore_errors=True)  # of a call that was killed here
    partly.mkdir()
    with open(partly / "user_vectors.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {
            "descr": "<f4", "fortran_order": False, "shape": (len(user_ids), recommender.list_vectors.shape[1])})
        for part in parts:
            for chunk in read_part(part)["vector"].chunks:
                file.write(chunk.flatten().to_numpy())
    np.save(partly / "movie_ids.npy", recommender.movies.movie_id[known.numpy()])
    np.save(partly / "movie_vectors.npy", recommender.list_vectors[known].numpy())
    np.save(partly / "margins.npy", recommender.model.margins()[known].numpy())
    np.save(partly / "user_ids.npy", user_ids)
    (partly / "vectors.json").write_text(json.dumps(_description(recommender), indent=1) + "\n", encoding="utf-8")
    for path in partly.iterdir():
        sync(path)
    partly.rename(folder)
    sync(folder.absolute().parent)
