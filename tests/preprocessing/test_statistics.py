"""What a data set says of movies, users, stars and days, counted again from the raw text; files are read by pyarrow."""

import csv
import hashlib
import io
import json
import random
import re
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from preprocessing import movielens_preprocess, netflix_preprocess

SPLITS = ("train", "validation", "test")


# --- raw text --------------------------------------------------------------------------------------------------

# movie_id: (text of the title, title, year). 70 has ratings and no title, 99 a title and no rating.
TITLES = {
    99: ("Never Seen (2005)", "Never Seen", 2005),
    3: ("Toy Story (1995)", "Toy Story", 1995),
    7: ('The "Big", Bad One (2001)', 'The "Big", Bad One', 2001),
    40: ("Caf\u00e9 (1896) ", "Caf\u00e9", 1896),
    12: ("Without a Year", "Without a Year", None),
    20: ("Brazil (Long Cut)", "Brazil (Long Cut)", None),
    33: ("1984 (1956) (1984)", "1984 (1956)", 1984),
    21: ("2001: A Space Odyssey (1968)", "2001: A Space Odyssey", 1968),
    55: ("Zeros (20000)", "Zeros (20000)", None)}
MOVIES = [3, 7, 12, 20, 21, 33, 40, 55, 70]
STARS = {"whole": [1, 2, 3, 4, 5], "half": [0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]}


def draw(stars="whole", seed=0, num_users=60):
    """Draw {(user_id, movie_id): (stars, seconds)} with gaps between ids, seconds on both sides of midnights."""
    rng = random.Random(seed)
    users = rng.sample(range(1, 5000), num_users)
    pairs = [(user_id, movie_id) for user_id in users for movie_id in MOVIES if rng.random() < 0.8]
    return {pair: (rng.choice(STARS[stars]), 11_000 * 86_400 + rng.randrange(40) * 86_400 + rng.choice([0, 1, 86_399]))
            for pair in rng.sample(pairs, len(pairs))}


LAYOUTS = {"u.data": ("u.item", "\t"), "ratings.dat": ("movies.dat", "::"),
           "ratings_no_timestamp.dat": ("movies.dat", "::"), "ratings.csv": ("movies.csv", ","),
           "u3": ("u.item", "\t")}


def movielens_files(layout, ratings, titles=TITLES, test_pairs=()):
    """Return the files of one of MovieLens' layouts: {name: text}."""
    titles_name, separator = LAYOUTS[layout]
    lines = {}
    for (user_id, movie_id), (stars, seconds) in ratings.items():
        fields = [user_id, movie_id, float(stars) if layout == "ratings.csv" else stars, seconds]
        lines[user_id, movie_id] = separator.join(map(str, fields[:3 if "no_timestamp" in layout else 4])) + "\n"
    texts = {movie_id: text for movie_id, (text, *_) in titles.items()}
    if layout == "ratings.csv":
        table = io.StringIO()
        csv.writer(table, lineterminator="\r\n").writerows([("movieId", "title", "genres"), *(
            (movie_id, text, "Comedy|Drama") for movie_id, text in texts.items())])
        return {layout: "userId,movieId,rating,timestamp\n" + "".join(lines.values()), titles_name: table.getvalue()}
    bar, rest = ("|", "01-Jan-1995||http://example.org|0|1") if titles_name == "u.item" else ("::", "Comedy|Drama")
    files = {titles_name: "".join(f"{movie_id}{bar}{text}{bar}{rest}\n" for movie_id, text in texts.items())}
    if layout != "u3":
        return {**files, layout: "".join(lines.values())}
    return {**files, "u3.base": "".join(line for pair, line in lines.items() if pair not in test_pairs),
            "u3.test": "".join(line for pair, line in lines.items() if pair in test_pairs), "u.data": "no data\n"}


def netflix_files(ratings, titles=TITLES, test_pairs=(), num_files=2):
    """Return the files of Netflix's layout: {name: text}; the title is the one without its year."""
    files = {f"combined_data_{number + 1}.txt": "".join(
        f"{movie_id}:\n{user_id},{stars},{day_of(seconds)}\n"
        for (user_id, movie_id), (stars, seconds) in list(ratings.items())[number::num_files])
        for number in range(num_files)}
    files["movie_titles.csv"] = "".join(f"{movie_id},{year or 'NULL'},{title}\n"
                                        for movie_id, (_, title, year) in titles.items())
    return {**files, "probe.txt": "".join(f"{movie_id}:\n{user_id}\n" for user_id, movie_id in test_pairs)}


def day_of(seconds):
    return datetime.fromtimestamp(seconds, UTC).date()


FLAGS = {"test_fraction": 0.3, "latest_n": 7, "val_fraction": 0.2, "seed": 6}


@pytest.fixture
def write(tmp_path):
    """Run a command on raw files with FLAGS; return the data set's tables as lists, meta.json and the folder."""
    count = iter(range(1000))

    def write(command, files, split="auto"):
        folder = tmp_path / f"{next(count)}"
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8" if name.endswith("csv") else "latin-1", newline="")
        flags = [word for name, value in FLAGS.items() for word in (f"--{name}", str(value))]
        assert command.main(["--raw_dir", str(folder), "--out_dir", str(folder / "out"), "--split", split, *flags]) == 0
        tables = {name: pq.read_table(folder / "out" / f"{name}.parquet") for name in ("ratings", "users", "movies")}
        return SimpleNamespace(**{name: table.to_pydict() for name, table in tables.items()}, folder=folder / "out",
                               epoch=tables["ratings"].schema.metadata[b"day_epoch"].decode(),
                               meta=json.loads((folder / "out" / "meta.json").read_text()))

    return write


# --- every number again ----------------------------------------------------------------------------------------


def check(made, ratings, name, method, sources, with_days=True):
    """Demand that a data set says what the raw ratings and TITLES say, and nothing else."""
    user_ids = sorted({user_id for user_id, _ in ratings})
    movie_ids = sorted({movie_id for _, movie_id in ratings} | set(TITLES))
    days = {pair: day_of(seconds) if with_days else date(1970, 1, 1) for pair, (_, seconds) in ratings.items()}
    first, last = min(days.values()), max(days.values())
    values = Counter(stars for stars, _ in ratings.values())
    step = 0.5 if any(stars % 1 for stars in values) else 1
    rows = made.ratings

    read = {(user_ids[user], movie_ids[movie]): (stars * step, first + timedelta(day)) for user, movie, stars, day in
            zip(rows["user_idx"], rows["movie_idx"], rows["stars"], rows["day"], strict=True)}
    assert read == {pair: (stars, days[pair]) for pair, (stars, _) in ratings.items()}
    assert len(rows["stars"]) == len(ratings)

    numbers = Counter(user_id for user_id, _ in ratings)
    assert made.users == {"user_id": user_ids, "num_ratings": [numbers[user_id] for user_id in user_ids],
                          "offset": [sum(numbers[user_id] for user_id in user_ids[:k]) for k in range(len(user_ids))]}
    assert [user for user, number in enumerate(made.users["num_ratings"]) for _ in range(number)] == rows["user_idx"]
    trained = Counter(movie for movie, split in zip(rows["movie_idx"], rows["split"], strict=True) if split == "train")
    assert made.movies == {"movie_id": movie_ids, "num_train_ratings": [trained[k] for k in range(len(movie_ids))],
                           "title": [TITLES.get(movie_id, ("", "", None))[1] for movie_id in movie_ids],
                           "year": [TITLES.get(movie_id, ("", "", None))[2] for movie_id in movie_ids]}

    counts = Counter(rows["split"])
    assert min(counts[split] for split in SPLITS) > 20  # each is large enough to be missed
    meta = dict(made.meta)
    assert re.fullmatch("[0-9a-f]{64}", meta.pop("fingerprint"))
    assert meta.pop("digest") == sha256(json.dumps({k: v for k, v in made.meta.items() if k != "digest"}).encode())
    assert sorted(meta.pop("sources"), key=itemgetter("name")) == [
        {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path.read_bytes())}
        for path in sorted(made.folder.parent / source for source in sources)]
    assert made.epoch == str(first)
    assert list(meta["histogram"]) == [f"{stars:g}" for stars in sorted(values)]
    assert meta == {
        "format_version": 4, "name": name, "num_ratings": len(ratings), "num_users": len(user_ids),
        "num_movies": len(movie_ids), "num_rated_movies": len(MOVIES), "day_epoch": str(first),
        "num_days": (last - first).days + 1, "stars_range": [step, 5], "stars_step": step,
        "histogram": {f"{stars:g}": number for stars, number in values.items()}, "seed": FLAGS["seed"],
        "split": {"method": method, **FLAGS, **{f"num_{split}": counts[split] for split in SPLITS}},
        "footers": {f"{table}.parquet": footer_digest(made.folder / f"{table}.parquet")
                    for table in ("ratings", "users", "movies")}}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def footer_digest(path):
    """Return the SHA-256 of a parquet file's length and last bytes: footer, length of the footer, magic number."""
    data = path.read_bytes()
    length = int.from_bytes(data[-8:-4], "little") + 8
    return sha256(len(data).to_bytes(8, "little") + data[-length:])


@pytest.mark.parametrize("stars", ["whole", "half"])
@pytest.mark.parametrize(("layout", "split"), [
    (layout, split) for layout in LAYOUTS for split in ("latest", "random", "u3")
    if (layout == "u3") == (split == "u3") and not ("no_timestamp" in layout and split == "latest")])
def test_movielens_data_set_says_what_its_text_says(write, layout, split, stars):
    ratings = draw(stars)
    made = write(movielens_preprocess, movielens_files(layout, ratings, test_pairs=list(ratings)[:90]), split)
    sources = {"u3": ["u3.base", "u3.test", "u.item"]}.get(layout, [layout, LAYOUTS[layout][0]])
    check(made, ratings, "movielens", split, sources, with_days="no_timestamp" not in layout)


@pytest.mark.parametrize("split", ["probe", "latest", "random"])
def test_netflix_data_set_says_what_its_text_says(write, split):
    ratings = draw()
    made = write(netflix_preprocess, netflix_files(ratings, test_pairs=list(ratings)[:90]), split)
    sources = ["combined_data_1.txt", "combined_data_2.txt", "movie_titles.csv", *["probe.txt"] * (split == "probe")]
    check(made, ratings, "netflix", split, sources)


@pytest.mark.parametrize("layout", ["u.data", "ratings.dat", "ratings.csv"])
def test_ratings_of_one_day_are_of_day_0(write, layout):
    """The first and the last second of 2001-09-09 in UTC; --split latest takes a random choice of them."""
    ratings = {pair: (stars, 999_993_600 + 86_399 * (k % 2)) for k, (pair, (stars, _)) in enumerate(draw().items())}
    made = write(movielens_preprocess, movielens_files(layout, ratings))
    check(made, ratings, "movielens", "latest", [layout, LAYOUTS[layout][0]])
    assert made.epoch == "2001-09-09" and set(made.ratings["day"]) == {0}


@pytest.mark.parametrize("layout", ["u.data", "ratings.dat", "ratings.csv"])
def test_whole_stars_written_with_a_point_stay_whole_and_one_half_star_makes_all_steps_half(write, layout):
    ratings = {pair: (float(stars), seconds) for pair, (stars, seconds) in draw().items()}
    for one, stored in ((2.0, {1, 2, 3, 4, 5}), (3.5, {2, 4, 6, 7, 8, 10})):
        pair = next(iter(ratings))
        ratings[pair] = one, ratings[pair][1]
        made = write(movielens_preprocess, movielens_files(layout, ratings))
        check(made, ratings, "movielens", "latest", [layout, LAYOUTS[layout][0]])
        assert set(made.ratings["stars"]) == stored


# --- fingerprint -----------------------------------------------------------------------------------------------


def test_the_same_ratings_are_the_same_data_set_whatever_the_layout_and_the_order(write):
    """MovieLens' three layouts with timestamps and Netflix's, each in two orders: the same files, one fingerprint."""
    ratings = draw()
    others = dict(random.Random(5).sample(list(ratings.items()), len(ratings)))
    made = [write(movielens_preprocess, movielens_files(layout, lines), "latest")
            for layout in ("u.data", "ratings.dat", "ratings.csv") for lines in (ratings, others)]
    made += [write(netflix_preprocess, netflix_files(lines, num_files=num_files), "latest")
             for lines in (ratings, others) for num_files in (1, 3)]
    assert len({data_set.meta["fingerprint"] for data_set in made}) == 1
    for name in ("ratings", "users", "movies"):
        assert len({(data_set.folder / f"{name}.parquet").read_bytes() for data_set in made}) == 1


def changes(ratings, test_pairs):
    """Yield (ratings, titles, test pairs) with one thing changed, or two of a kind exchanged."""
    pairs = list(ratings)
    for pair in pairs[::13]:
        stars, seconds = ratings[pair]
        yield {**ratings, pair: (stars % 5 + 1, seconds)}, TITLES, test_pairs
        yield {**ratings, pair: (stars, seconds + 50 * 86_400)}, TITLES, test_pairs
        yield {other: ratings[other] for other in pairs if other != pair}, TITLES, set(test_pairs) - {pair}
    for pair, other in zip(test_pairs[::5], [pair for pair in pairs if pair not in test_pairs], strict=False):
        yield ratings, TITLES, {*test_pairs, other} - {pair}
    for movie_id, (_, title, year) in TITLES.items():
        other = f"{title},"
        yield ratings, {**TITLES, movie_id: (f"{other} ({year})" if year else other, other, year)}, test_pairs
        yield ratings, {**TITLES, movie_id: (f"{title} (1990)", title, 1990)}, test_pairs
    yield ratings, {**TITLES, 12: TITLES[20], 20: TITLES[12]}, test_pairs
    yield ratings, {**TITLES, 12: ("Without a Year (1985)", "Without a Year", 1985)}, test_pairs
    yield ratings, {**TITLES, 20: ("Brazil (Long Cut) (1985)", "Brazil (Long Cut)", 1985)}, test_pairs
    yield {pair: (stars, seconds + 365 * 86_400) for pair, (stars, seconds) in ratings.items()}, TITLES, test_pairs
    yield ratings, {movie_id % 99 or 98: texts for movie_id, texts in TITLES.items()}, test_pairs
    yield {(user_id + 1, movie_id): ratings[user_id, movie_id] for user_id, movie_id in pairs}, TITLES, {
        (user_id + 1, movie_id) for user_id, movie_id in test_pairs}


@pytest.mark.parametrize("command", [netflix_preprocess, movielens_preprocess], ids=["netflix", "movielens"])
def test_the_fingerprint_changes_with_every_rating_split_title_and_year(write, command):
    ratings = draw(num_users=9)
    test_pairs = list(ratings)[3::4]
    cases = [(ratings, TITLES, test_pairs), *changes(ratings, test_pairs)]
    prints = [write(command, *((netflix_files(*case), "probe") if command is netflix_preprocess else
                               (movielens_files("u3", *case), "u3"))).meta["fingerprint"] for case in cases]
    assert len(set(prints)) == len(cases) > 35


def test_half_as_many_stars_in_steps_of_half_a_star_are_another_data_set(write):
    """2, 4 and 5 stars in steps of one and 1, 2 and 2.5 stars in steps of a half are the same whole numbers."""
    ratings = draw()
    halved = {pair: (stars / 2, seconds) for pair, (stars, seconds) in ratings.items()}
    whole, half = (write(movielens_preprocess, movielens_files("ratings.csv", lines)) for lines in (ratings, halved))
    assert whole.ratings == half.ratings
    assert whole.meta["fingerprint"] != half.meta["fingerprint"]


# --- mistakes of the text --------------------------------------------------------------------------------------


def test_a_pair_in_the_training_file_and_in_the_test_file_is_refused_with_its_line(tmp_path, capsys):
    (tmp_path / "u1.base").write_text("7\t3\t5\t881250949\n8\t3\t5\t881250949\n")
    (tmp_path / "u1.test").write_text("9\t3\t5\t881250949\n8\t4\t5\t881250949\n8\t3\t5\t881250949\n")
    (tmp_path / "u.item").write_text("3|A|\n")
    flags = ["--raw_dir", str(tmp_path), "--out_dir", str(tmp_path / "out"), "--split", "u1"]
    assert movielens_preprocess.main(flags) == 1
    assert f"error: {tmp_path / 'u1.test'}, line 3: " in capsys.readouterr().err


@pytest.mark.parametrize("files", [
    {"ratings.csv": "userId,movieId,rating\n7,3000000000,5\n8,3,4\n", "movies.csv": "movieId,title,x\n3,A,x\n"},
    {"ratings.csv": "userId,movieId,rating\n7,-3,5\n8,3,4\n", "movies.csv": "movieId,title,x\n3,A,x\n"},
    {"ratings.csv": "userId,movieId,rating\n-7,3,5\n8,3,4\n", "movies.csv": "movieId,title,x\n3,A,x\n"},
    {"u.data": "7\t3\t5\t881250949\n", "u.item": "3000000000|A|\n"},
    {"u.data": "7\t3\t5\t881250949\n", "u.item": "\xb2|A|\n"},
    {"u.data": "7\t3\t5\t881250949\n", "u.item": f"{'1' * 5000}|A|\n"}],
    ids=["movie id of 32 bits", "negative movie id", "negative user id", "title id of 32 bits", "id of no digit",
         "title id of 5,000 digits"])
def test_an_id_that_cannot_be_is_refused_in_one_sentence(tmp_path, capsys, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="latin-1")
    assert movielens_preprocess.main(["--raw_dir", str(tmp_path), "--out_dir", str(tmp_path / "out")]) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("letter", ["\x85", "\x1c", "\x0c"])
def test_a_title_with_a_letter_that_only_python_takes_for_a_line_end_stays_whole(write, letter):
    made = write(movielens_preprocess, {"u.data": "7\t3\t5\t881250949\n", "u.item": f"3|A{letter}B (2000)|\n"})
    assert made.movies["title"] == ["A" + letter.replace("\x85", "…") + "B"]  # 0x85 as Windows means it
