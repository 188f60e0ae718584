"""The four files: their schema, their readers, and what the readers say of damage."""

import hashlib
import json
import shutil
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing import building
from preprocessing.dataset import (
    SPLITS,
    DataError,
    RatingsFile,
    User,
    UsersFile,
    read_meta,
    read_movies,
    read_users,
    reader,
    writer,
)
from preprocessing.dataset.integrity import footer_digest
from preprocessing.dataset.schema import CODEC, ratings_schema

COLUMNS = ("user_idx", "movie_idx", "stars", "day", "split")
PARQUETS = ("ratings.parquet", "users.parquet", "movies.parquet")


@pytest.fixture(params=[1, 40, 1 << 18], ids=lambda num_rows: f"groups of {num_rows}")
def data_dir(request, kit, preprocess, monkeypatch):
    """A data set with row groups of one user, of some users, of all users; titles hold traps."""
    monkeypatch.setattr(building, "GROUP_ROWS", request.param)
    ratings = kit.draw_ratings(40, num_users=50, num_movies=20)
    titles = "".join(f"{movie_id},{'NULL' if k % 5 == 0 else 1950 + k},Caf\u00e9, no. {k}\n"
                     for k, movie_id in enumerate(sorted({r.movie_id for r in ratings} | {1000, 1001})))
    return preprocess(ratings=ratings, titles=titles.encode("latin-1"))


@pytest.fixture
def sound_dir(kit, preprocess):
    return preprocess(ratings=kit.draw_ratings(41, num_users=50, num_movies=20))


def read_everything(data_dir):
    """Read all that the readers give, as comparable Python values."""
    ratings, users, movies = RatingsFile(data_dir), read_users(data_dir), read_movies(data_dir)
    groups = [(rows.start, rows.stop, *(getattr(group, name).tolist() for name in COLUMNS))
              for rows, group in ratings.read_groups()]
    return (groups, users.user_id.tolist(), users.offset.tolist(), movies.movie_id.tolist(), movies.year.tolist(),
            list(movies.title), movies.num_train_ratings.tolist())


# --- schema ----------------------------------------------------------------------------------------------------


def test_columns_have_the_types_of_the_schema(data_dir):
    ratings = pq.read_schema(data_dir / "ratings.parquet")
    assert ratings.names == ["user_idx", "movie_idx", "stars", "day", "split"]
    assert [ratings.field(name).type for name in ratings.names[:4]] == [pa.int32(), pa.int16(), pa.uint8(), pa.int16()]
    split = pq.read_table(data_dir / "ratings.parquet")["split"]
    assert set(split.to_pylist()) == {"train", "validation", "test"}
    users = pq.read_schema(data_dir / "users.parquet")
    assert [(field.name, field.type) for field in users] == [
        ("user_id", pa.int64()), ("offset", pa.int64()), ("num_ratings", pa.int32())]
    movies = pq.read_schema(data_dir / "movies.parquet")
    assert [(field.name, field.type) for field in movies] == [
        ("movie_id", pa.int32()), ("year", pa.int16()), ("title", pa.string()), ("num_train_ratings", pa.int32())]
    for schema in (ratings, users, movies):
        assert all(schema.field(name).nullable for name in schema.names if name == "year")


def test_indices_and_days_are_int16_as_far_as_it_goes():
    for number, kind in ((32_768, pa.int16()), (32_769, pa.int32())):  # from 0: up to 32,767 and 32,768
        assert ratings_schema(number, 1, "2000-01-01").field("movie_idx").type == kind
        assert ratings_schema(1, number, "2000-01-01").field("day").type == kind


def test_nothing_but_years_is_null(data_dir):
    for name in PARQUETS:
        table = pq.read_table(data_dir / name)
        assert {column for column in table.column_names if table[column].null_count} <= {"year"}
    assert pq.read_table(data_dir / "movies.parquet")["year"].null_count >= 4


def test_ratings_are_sorted_by_user_day_movie_and_no_pair_is_twice(kit, data_dir):
    rows = [(row.user_idx, row.day, row.movie_idx) for row in kit.read_rows(data_dir)]
    assert rows == sorted(rows)
    assert len({(user_idx, movie_idx) for user_idx, _, movie_idx in rows}) == len(rows) > 200


def test_the_epoch_turns_days_into_dates(kit, data_dir):
    dates = Counter(row.date for row in kit.read_rows(data_dir))
    assert dates == Counter(r.date for r in kit.draw_ratings(40, num_users=50, num_movies=20))


def test_a_row_group_never_cuts_a_user(data_dir):
    file = pq.ParquetFile(data_dir / "ratings.parquet")
    groups = [set(file.read_row_group(k)["user_idx"].to_pylist()) for k in range(file.num_row_groups)]
    assert sum(map(len, groups)) == len(set().union(*groups))
    assert all(groups)


def test_row_groups_are_as_large_as_asked_or_one_user(kit, preprocess, monkeypatch):
    for num_rows in (1, 40, 100):
        monkeypatch.setattr(building, "GROUP_ROWS", num_rows)
        out_dir = preprocess(ratings=kit.draw_ratings(40, num_users=50, num_movies=20))
        file = pq.ParquetFile(out_dir / "ratings.parquet")
        largest_user = max(pq.read_table(out_dir / "users.parquet")["num_ratings"].to_pylist())
        written = [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)]
        assert max(written) < num_rows + largest_user
        assert len(written) > 1


def test_the_size_of_row_groups_changes_no_rating(kit, preprocess, monkeypatch):
    results = []
    for num_rows in (1, 7, 1 << 18):
        monkeypatch.setattr(building, "GROUP_ROWS", num_rows)
        out_dir = preprocess(ratings=kit.draw_ratings(40, num_users=50, num_movies=20))
        results.append((kit.read_rows(out_dir), (out_dir / "users.parquet").read_bytes(),
                        (out_dir / "movies.parquet").read_bytes()))
    assert results[0] == results[1] == results[2]


def test_user_idx_and_movie_idx_are_the_ranks_of_the_ids(kit, data_dir):
    ratings = kit.draw_ratings(40, num_users=50, num_movies=20)
    assert pq.read_table(data_dir / "users.parquet")["user_id"].to_pylist() == sorted({r.user_id for r in ratings})
    assert pq.read_table(data_dir / "movies.parquet")["movie_id"].to_pylist() == sorted(
        {r.movie_id for r in ratings} | {1000, 1001})
    pairs = {(row.user_id, row.movie_id) for row in kit.read_rows(data_dir)}
    assert pairs == {(r.user_id, r.movie_id) for r in ratings}


def test_offset_and_number_of_ratings_delimit_each_user(data_dir):
    user_idx = pq.read_table(data_dir / "ratings.parquet")["user_idx"].to_pylist()
    for number, row in enumerate(pq.read_table(data_dir / "users.parquet").to_pylist()):
        assert (row["offset"], row["num_ratings"]) == (user_idx.index(number), user_idx.count(number))


def test_movies_count_training_ratings_alone(kit, data_dir):
    counts = defaultdict(Counter)
    for row in kit.read_rows(data_dir):
        counts[row.movie_id][row.split] += 1
    movies = pq.read_table(data_dir / "movies.parquet").to_pylist()
    assert {row["movie_id"]: row["num_train_ratings"] for row in movies} == {
        row["movie_id"]: counts[row["movie_id"]]["train"] for row in movies}
    assert {row["movie_id"]: row["num_train_ratings"] for row in movies}[1000] == 0
    assert sum(row["num_train_ratings"] for row in movies) < sum(sum(c.values()) for c in counts.values())


# --- readers ---------------------------------------------------------------------------------------------------


def test_read_user_gives_the_rows_of_the_user(data_dir):
    table = pq.read_table(data_dir / "ratings.parquet").to_pylist()
    users, ratings = read_users(data_dir), RatingsFile(data_dir)
    assert len(users.user_id) > 40
    for user_idx in [*range(len(users.user_id)), 0, len(users.user_id) - 1]:
        read = ratings.read_user(users.user(user_idx))
        rows = [row for row in table if row["user_idx"] == user_idx]
        assert [tuple(getattr(read, name)[k] for name in COLUMNS[:4]) for k in range(len(read.stars))] == [
            tuple(row[name] for name in COLUMNS[:4]) for row in rows]


@pytest.mark.parametrize("users_per_group", [1, 7, 1 << 20])
def test_a_user_is_found_in_the_row_group_of_their_id(kit, preprocess, monkeypatch, users_per_group):
    monkeypatch.setattr(writer, "USERS_PER_GROUP", users_per_group)
    data_dir = preprocess(ratings=kit.draw_ratings(42, num_users=50, num_movies=20))
    users, file = read_users(data_dir), UsersFile(data_dir)
    assert pq.read_metadata(data_dir / "users.parquet").num_row_groups == -(-len(users.user_id) // users_per_group)
    known = users.user_id.tolist()
    for user_id in [*range(known[0] - 2, known[-1] + 3), -2**70, 2**70]:
        assert file.find(user_id) == (users.user(known.index(user_id)) if user_id in known else None)
    assert [file.id_of(user_idx) for user_idx in range(len(known))] == known


def test_a_user_s_row_group_that_is_damaged_is_noticed_and_another_s_is_not_read(kit, preprocess, monkeypatch):
    monkeypatch.setattr(writer, "USERS_PER_GROUP", 10)
    data_dir = preprocess(ratings=kit.draw_ratings(43, num_users=50, num_movies=20))
    known, path = read_users(data_dir).user_id.tolist(), data_dir / "users.parquet"
    column = pq.read_metadata(path).row_group(2).column(0)
    broken = bytearray(path.read_bytes())
    broken[column.data_page_offset + column.total_compressed_size - 2] ^= 1
    path.write_bytes(broken)
    assert UsersFile(data_dir).find(known[7]).user_idx == 7
    with pytest.raises(DataError, match=r"users\.parquet is damaged"):
        UsersFile(data_dir).find(known[25])


def test_ratings_of_another_user_are_not_taken_for_somebody_s(data_dir):
    rows = read_users(data_dir).user(3).rows
    with pytest.raises(DataError, match=r"ratings\.parquet is damaged \(ratings of one user where another's should be"):
        RatingsFile(data_dir).read_user(User(4, rows))
    with pytest.raises(DataError, match="another's should be"):  # one rating is enough
        RatingsFile(data_dir).read_user(User(3, slice(rows.start - 1, rows.stop)))


def test_read_groups_give_every_row_once_in_order(data_dir):
    table = pq.read_table(data_dir / "ratings.parquet")
    ratings = RatingsFile(data_dir)
    groups = list(ratings.read_groups())
    assert [k for rows, _ in groups for k in range(rows.start, rows.stop)] == list(range(table.num_rows))
    assert len(ratings) == table.num_rows
    for name in COLUMNS[:4]:
        column = np.concatenate([getattr(group, name) for _, group in groups])
        assert column.tolist() == table[name].to_pylist()
        assert column.dtype == table[name].type.to_pandas_dtype()
    codes = np.concatenate([group.split for _, group in groups])
    assert codes.dtype == np.uint8
    assert [SPLITS[code] for code in codes] == table["split"].to_pylist()
    assert ratings.schema.metadata[b"day_epoch"].decode() == read_meta(data_dir)["day_epoch"]


def test_read_users_and_read_movies_give_the_columns(data_dir):
    users, movies = read_users(data_dir), read_movies(data_dir)
    table = pq.read_table(data_dir / "users.parquet")
    assert users.user_id.tolist() == table["user_id"].to_pylist()
    assert users.offset.tolist() == [*table["offset"].to_pylist(), len(RatingsFile(data_dir))]
    assert np.diff(users.offset).tolist() == table["num_ratings"].to_pylist()
    assert users.user_id.dtype == users.offset.dtype == np.int64
    table = pq.read_table(data_dir / "movies.parquet")
    assert movies.movie_id.tolist() == table["movie_id"].to_pylist()
    assert movies.year.tolist() == [year or 0 for year in table["year"].to_pylist()]
    assert list(movies.title) == table["title"].to_pylist()
    assert movies.title[3] == "Caf\u00e9, no. 3"
    assert movies.num_train_ratings.tolist() == table["num_train_ratings"].to_pylist()
    assert (movies.movie_id.dtype, movies.year.dtype, movies.num_train_ratings.dtype) == (np.int32, np.int16, np.int32)


def test_read_meta_gives_the_json(data_dir):
    assert read_meta(data_dir) == json.loads((data_dir / "meta.json").read_text(encoding="utf-8"))


# --- damage ----------------------------------------------------------------------------------------------------

READERS = {"ratings.parquet": lambda folder: list(RatingsFile(folder).read_groups()), "users.parquet": read_users,
           "movies.parquet": read_movies, "meta.json": read_meta}


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_is_named_with_the_command_that_makes_it(sound_dir, name):
    (sound_dir / name).unlink()
    with pytest.raises(DataError) as error:
        READERS[name](sound_dir)
    assert str(sound_dir / name) in str(error.value)
    assert "python preprocessing/netflix_preprocess.py" in str(error.value)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_folder_is_named_with_the_command_that_makes_it(tmp_path, name):
    with pytest.raises(DataError, match=r"nowhere.*python preprocessing/netflix_preprocess\.py"):
        READERS[name](tmp_path / "nowhere")


@pytest.mark.parametrize("name", READERS)
def test_a_truncated_file_is_named_at_every_length(sound_dir, name):
    data = (sound_dir / name).read_bytes()
    for length in [*range(0, 16), *range(16, len(data) - 16, 97), *range(len(data) - 16, len(data) - 2)]:
        (sound_dir / name).write_bytes(data[:length])
        with pytest.raises(DataError) as error:
            READERS[name](sound_dir)
        assert str(sound_dir / name) in str(error.value), length


@pytest.mark.parametrize("name", PARQUETS)
def test_a_flipped_bit_in_any_page_is_noticed(sound_dir, name):
    """A page's values, compressed or not, are covered by its checksum; the last 8 bytes of a column are values."""
    metadata = pq.read_metadata(sound_dir / name)
    data = (sound_dir / name).read_bytes()
    ends = [(column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
            for group in range(metadata.num_row_groups) for number in range(metadata.num_columns)
            for column in [metadata.row_group(group).column(number)]]
    assert len(ends) == metadata.num_columns * metadata.num_row_groups
    for end in ends:
        for bit in (0, 3, 7):
            broken = bytearray(data)
            broken[end - 4] ^= 1 << bit
            (sound_dir / name).write_bytes(broken)
            with pytest.raises(DataError) as error:
                READERS[name](sound_dir)
            assert str(sound_dir / name) in str(error.value)


@pytest.mark.parametrize("name", PARQUETS)
def test_a_flipped_bit_before_the_footer_is_noticed_or_changes_nothing(sound_dir, name):
    data = (sound_dir / name).read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    whole = read_everything(sound_dir)
    noticed = 0
    for position in range(0, footer, max(1, footer // 300)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        (sound_dir / name).write_bytes(broken)
        try:
            assert read_everything(sound_dir) == whole, position
        except DataError as error:
            assert str(sound_dir / name) in str(error), position
            noticed += 1
    assert noticed > 150


@pytest.mark.parametrize("name", PARQUETS)
def test_a_flipped_bit_in_the_footer_raises_nothing_but_a_clean_error(sound_dir, name):
    """The footer has no checksum: its schema, statistics and offsets may come out as anything."""
    data = (sound_dir / name).read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    raised, noticed = {}, 0
    for position in range(footer, len(data), max(1, (len(data) - footer) // 500)):
        broken = bytearray(data)
        broken[position] ^= 1 << position % 8
        (sound_dir / name).write_bytes(broken)
        try:
            read_everything(sound_dir)
        except DataError as error:
            assert str(sound_dir / name) in str(error), position
            noticed += 1
        except Exception as error:
            raised[f"{type(error).__name__}: {error}"[:80]] = position
    assert raised == {}
    assert noticed > 100


@pytest.mark.parametrize("name", PARQUETS)
def test_a_file_that_is_no_parquet_is_named(sound_dir, name):
    for content in (b"", b"x", b"PAR1", b"PAR1PAR1", b"user_id,movie_id\n" * 100):
        (sound_dir / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            READERS[name](sound_dir)
        assert str(sound_dir / name) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b"{}", b"\xff\xfe", b'{"format_version": '])
def test_damaged_meta_is_named_with_the_command(sound_dir, content):
    (sound_dir / "meta.json").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_meta(sound_dir)
    assert str(sound_dir / "meta.json") in str(error.value)
    assert "python preprocessing/netflix_preprocess.py" in str(error.value)


def test_meta_of_another_format_version_is_refused(sound_dir):
    meta = read_meta(sound_dir)
    (sound_dir / "meta.json").write_text(json.dumps({**meta, "format_version": meta["format_version"] + 1}))
    with pytest.raises(DataError, match=r"meta\.json.*version"):
        read_meta(sound_dir)


def test_meta_of_more_than_16_mib_is_refused(sound_dir):
    path, meta = sound_dir / "meta.json", read_meta(sound_dir)
    text = path.read_bytes().strip()
    path.write_bytes(text.rjust(16 * 1024 * 1024))
    assert read_meta(sound_dir) == meta
    path.write_bytes(text.rjust(16 * 1024 * 1024 + 1))
    with pytest.raises(DataError, match=r"meta\.json is damaged"):
        read_meta(sound_dir)


def test_a_row_group_that_would_take_much_memory_is_refused_before_it_is_read(sound_dir, monkeypatch):
    monkeypatch.setattr(reader, "_group_starts", lambda file: np.array([0, 5, 16_777_221]))
    assert len(RatingsFile(sound_dir)) == 16_777_221
    monkeypatch.setattr(reader, "_group_starts", lambda file: np.array([0, 5, 16_777_222]))
    with pytest.raises(DataError, match=r"ratings\.parquet is damaged \(a row group of 16,777,217 rows\)"):
        RatingsFile(sound_dir)


def test_a_footer_that_says_to_be_longer_than_its_file_is_all_of_the_file(tmp_path):
    content = b"PAR1" + (100).to_bytes(4, "little") + b"PAR1"
    (tmp_path / "file").write_bytes(content)
    assert footer_digest(tmp_path / "file") == hashlib.sha256((12).to_bytes(8, "little") + content).hexdigest()


def rewrite_movies(data_dir, table, dictionaries=False):
    """Write a table as movies.parquet of a data set, as a stranger could, who makes the digests right too."""
    pq.write_table(table, data_dir / "movies.parquet", compression=CODEC, write_page_checksum=True,
                   use_dictionary=dictionaries)
    writer.write_meta(data_dir, read_meta(data_dir))


@pytest.mark.parametrize("column", ["movie_id", "title"])
def test_one_column_in_a_dictionary_is_enough_to_refuse_a_list_of_movies(sound_dir, column):
    table = pq.read_table(sound_dir / "movies.parquet")
    rewrite_movies(sound_dir, table)
    read_movies(sound_dir)
    rewrite_movies(sound_dir, table, dictionaries=[column])
    with pytest.raises(DataError, match=r"movies\.parquet is damaged \(packed in a dictionary\)"):
        read_movies(sound_dir)


@pytest.mark.parametrize(("column", "kind"), [("year", pa.int32()), ("title", pa.large_string())])
def test_a_list_of_movies_with_another_type_of_year_or_title_is_refused(sound_dir, column, kind):
    table = pq.read_table(sound_dir / "movies.parquet")
    position = table.column_names.index(column)
    rewrite_movies(sound_dir, table.set_column(position, column, table[column].cast(kind)))
    with pytest.raises(DataError, match=r"movies\.parquet is damaged \(its columns have other types\)"):
        read_movies(sound_dir)


def test_a_moved_data_set_reads_the_same(sound_dir, tmp_path):
    whole = read_everything(sound_dir)
    shutil.move(sound_dir, tmp_path / "moved here")
    assert read_everything(tmp_path / "moved here") == whole
