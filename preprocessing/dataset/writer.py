"""Write a data set's files."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.dataset.integrity import footer_digest, meta_digest
from preprocessing.dataset.records import SPLITS, Movies, Ratings, Users, are_text
from preprocessing.dataset.schema import CODEC, FILES, USERS_PER_GROUP


def ratings_writer(folder: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open ratings.parquet for writing; each `write_ratings` adds one row group."""
    return pq.ParquetWriter(folder / "ratings.parquet", schema, compression=CODEC, write_page_checksum=True,
                            write_statistics=["user_idx"])


def write_ratings(writer: pq.ParquetWriter, ratings: Ratings) -> None:
    """Write the ratings of some users, whole, as one row group."""
    split = pa.DictionaryArray.from_arrays(pa.array(ratings.known_split().view(np.int8)), pa.array(SPLITS))
    columns = [ratings.user_idx, ratings.movie_idx, ratings.stars, ratings.day]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, writer.schema, strict=False)]
    table = pa.Table.from_arrays([*arrays, split], schema=writer.schema)
    writer.write_table(table, row_group_size=max(len(table), 1))


def write_users(folder: Path, users: Users) -> None:
    """Write users.parquet."""
    table = pa.table({"user_id": users.user_id, "offset": users.offset[:-1],
                      "num_ratings": np.diff(users.offset).astype(np.int32)})
    numbers = ("offset",) if are_text(users.user_id) else ("user_id", "offset")
    ascending = dict.fromkeys(numbers, "DELTA_BINARY_PACKED")  # read five times as fast
    pq.write_table(table, folder / "users.parquet", compression=CODEC, write_page_checksum=True, use_dictionary=False,
                   column_encoding=ascending, row_group_size=USERS_PER_GROUP)


def write_movies(folder: Path, movies: Movies) -> None:
    """Write movies.parquet."""
    table = pa.table({"movie_id": movies.movie_id, "year": pa.array(movies.year, mask=movies.year == 0),
                      "title": pa.array(movies.title, pa.string()), "num_train_ratings": movies.num_train_ratings})
    pq.write_table(table, folder / "movies.parquet", compression=CODEC, write_page_checksum=True, use_dictionary=False)


def write_meta(folder: Path, meta: dict) -> None:
    """Write meta.json, after the files that it describes."""
    meta = {**meta, "footers": {name: footer_digest(folder / name) for name in FILES[:-1]}}
    meta["digest"] = meta_digest(meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
