"""The whole job of preprocessing in other libraries, for bench_preprocess.py, as people who know them would write it.

Each reads the rating files as they are, gives every rating its movie, numbers users and movies, sorts by user and date,
and writes ratings.parquet, users.parquet and movies.parquet; nothing is split, checked or read back. Their own choice
of threads; files compressed by lz4, as ours. What was tried beside these forms stands in benchmarks/LOG.md.
"""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

PACKAGES = ("pandas", "polars", "duckdb")


def run_polars(paths: list[Path], out_dir: Path) -> None:
    """Scan lazily, fill the movie forward, collect by the streaming engine; then sort and number."""
    import polars as pl

    is_header = pl.col("stars").is_null()
    movie_id = pl.when(is_header).then(pl.col("user_id").str.strip_suffix(":")).cast(pl.Int32).forward_fill()
    ratings = (
        pl.scan_csv(paths, has_header=False, quote_char=None, missing_columns="insert",
                    schema={"user_id": pl.String, "stars": pl.UInt8, "date": pl.Date})
        .with_columns(movie_id=movie_id)
        .filter(~is_header)
        .with_columns(pl.col("user_id").cast(pl.Int32))
        .collect(engine="streaming"))
    movies = ratings.select("movie_id").unique().sort("movie_id").with_row_index("movie_idx")
    ratings = ratings.sort("user_id", "date").with_columns(user_idx=pl.col("user_id").rle_id())
    ratings.select("user_idx", "user_id").unique().sort("user_idx").write_parquet(out_dir / "users.parquet")
    movies.write_parquet(out_dir / "movies.parquet")
    (ratings.select("user_idx", "movie_id", "stars", "date").join(movies, on="movie_id", maintain_order="left")
     .drop("movie_id").write_parquet(out_dir / "ratings.parquet", compression="lz4"))


def run_duckdb(paths: list[Path], out_dir: Path) -> None:
    """Fill the movie by a window that streams, number by two small tables, order on the way into the file."""
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET temp_directory = ?", [str(out_dir)])
        connection.execute("""
            CREATE TABLE ratings AS
            SELECT user_id::INTEGER AS user_id, movie_id, stars, date
            FROM (SELECT *, max(CASE WHEN stars IS NULL THEN rtrim(user_id, ':')::INTEGER END)
                            OVER (ROWS UNBOUNDED PRECEDING) AS movie_id
                  FROM read_csv(?, header = false, delim = ',', quote = '', escape = '', null_padding = true,
                                auto_detect = false,
                                columns = {'user_id': 'VARCHAR', 'stars': 'UTINYINT', 'date': 'DATE'}))
            WHERE stars IS NOT NULL""", [[str(path) for path in paths]])
        for name in ("user", "movie"):
            connection.execute(f"""
                CREATE TABLE {name}s AS SELECT {name}_id, (row_number() OVER (ORDER BY {name}_id) - 1)::INTEGER
                AS {name}_idx FROM (SELECT DISTINCT {name}_id FROM ratings);
                COPY (FROM {name}s ORDER BY {name}_idx) TO '{out_dir}/{name}s.parquet'""")
        connection.execute(f"""
            COPY (SELECT user_idx, movie_idx, stars, date FROM ratings JOIN users USING (user_id)
                  JOIN movies USING (movie_id) ORDER BY user_idx, date)
            TO '{out_dir}/ratings.parquet' (COMPRESSION lz4)""")


def checksum(out_dir: Path, first_day: np.datetime64 | None = None) -> tuple[int, int]:
    """Return how many ratings a result holds, and a sum that differs if any one differs; ids, not numbers, count.

    Args:
        first_day: day 0 of our own files, whose days are numbers; a peer's are dates.

    Raises:
        ValueError: the ratings are not sorted by user and date.
    """
    ids = [pq.read_table(out_dir / f"{name}s.parquet", columns=[f"{name}_id"]).column(0).to_numpy().astype(np.uint64)
           for name in ("user", "movie")]
    num_ratings, total, last = 0, 0, np.int64(-1)
    day_column = "date" if first_day is None else "day"
    for batch in pq.ParquetFile(out_dir / "ratings.parquet").iter_batches(
            1 << 20, columns=["user_idx", "movie_idx", "stars", day_column]):
        user_idx, movie_idx, stars, day = (batch[name].to_numpy(zero_copy_only=False) for name in (
            "user_idx", "movie_idx", "stars", day_column))
        days = day.astype("datetime64[D]").astype(np.int64) if first_day is None else day + first_day.astype(np.int64)
        order = np.append(last, user_idx.astype(np.int64) << 20 | days)
        if (np.diff(order) < 0).any():
            raise ValueError(f"{out_dir} is not sorted by user and date")
        last = order[-1]
        word = (ids[0][user_idx] << np.uint64(15) | ids[1][movie_idx]) << np.uint64(20)
        word |= days.astype(np.uint64) << np.uint64(3) | stars.astype(np.uint64)
        for shift in (29, 32):  # scatter the bits, so that differences do not cancel out in the sum
            word = (word ^ word >> np.uint64(shift)) * np.uint64(0x9E3779B97F4A7C15)
        total += int(word.sum(dtype=np.uint64))
        num_ratings += len(word)
    return num_ratings, total % 2**64
