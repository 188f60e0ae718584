"""The processed data set on disk: what is in its four files, how they are written and how they are read.

    ratings.parquet   a row per rating, sorted by user_idx, day, movie_idx; a row group never cuts a user
        user_idx int32, movie_idx int16 (int32 past 32,767 movies), stars uint8 (in steps of `stars_step`; int16 where
        that does not hold them all: below 0, or past 255 steps), day int16 (int32 past 32,767 days), counted from the
        schema's metadata entry `day_epoch` (YYYY-MM-DD),
        split: "train", "validation" or "test"
    users.parquet     row user_idx: user_id int64 or string, offset int64 into ratings.parquet, num_ratings int32; in
        row groups, so that one user is found without reading all; without dictionaries
    movies.parquet    row movie_idx: movie_id int32 or string, year int16 or null, title string, num_train_ratings
        int32; without dictionaries
    meta.json         format version, counts, split and its parameters, histogram, sources, one fingerprint,
        digests of the parquet files' footers, and of its own entries

user_idx is the rank of user_id, movie_idx the rank of movie_id among all movies that have a title or a rating. Ids are
strings where the raw files have one that is no plain whole number; these are in order of their code points."""

import pyarrow as pa

FORMAT_VERSION = 4
COLUMNS = ("user_idx", "movie_idx", "stars", "day")  # of ratings.parquet, beside the split
FILES = ("ratings.parquet", "users.parquet", "movies.parquet", "meta.json")
PREPROCESS = "python preprocessing/netflix_preprocess.py"

CODEC = "lz4"  # quick, and cannot expand a byte to more than 255
USERS_PER_GROUP = 8_192  # in a row group of users.parquet, which is read to find one user
MOST_ID_LETTERS = 200  # of an id that is text


def ratings_schema(num_movies: int, num_days: int, day_epoch: str, stars_fit_a_byte: bool = True) -> pa.Schema:
    """Return the schema of ratings.parquet for a catalogue, a span of days and a scale."""
    return pa.schema([
        ("user_idx", pa.int32()),
        ("movie_idx", pa.int16() if num_movies <= 2**15 else pa.int32()),
        ("stars", pa.uint8() if stars_fit_a_byte else pa.int16()),
        ("day", pa.int16() if num_days <= 2**15 else pa.int32()),
        ("split", pa.dictionary(pa.int8(), pa.string())),
    ], metadata={"day_epoch": day_epoch})
