import datetime
import random
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from preprocessing.netflix_preprocess import main


@dataclass(frozen=True)
class Rating:
    movie_id: int
    user_id: int
    stars: int
    date: str  # YYYY-MM-DD

    @property
    def line(self):
        return f"{self.user_id},{self.stars},{self.date}"


def rating_text(ratings, eol="\n"):
    """Write a header at every change of movie, then the ratings, in the given order."""
    lines, movie_id = [], None
    for rating in ratings:
        if rating.movie_id != movie_id:
            movie_id = rating.movie_id
            lines.append(f"{movie_id}:")
        lines.append(rating.line)
    return "".join(line + eol for line in lines).encode()


def title_text(movie_ids):
    return "".join(f"{movie_id},{1900 + movie_id % 100},Title {movie_id}\n" for movie_id in movie_ids).encode()


def probe_text(pairs):
    """Write probe.txt from (movie_id, user_id) pairs."""
    lines, last = [], None
    for movie_id, user_id in pairs:
        lines += ([f"{movie_id}:"] if movie_id != last else []) + [str(user_id)]
        last = movie_id
    return "".join(line + "\n" for line in lines).encode()


def draw_ratings(seed, num_users=60, num_movies=25, first="2004-11-01", num_days=12, density=0.5):
    """Draw a fraction of about `density` of all pairs, in movie order; ids have gaps, and many ratings share a day."""
    rng = random.Random(seed)
    start = datetime.date.fromisoformat(first)
    users = sorted(rng.sample(range(1, 50 * num_users), num_users))
    movies = sorted(rng.sample(range(1, 9 * num_movies), num_movies))
    probability = {user_id: rng.random() * 2 * density for user_id in users}
    return [Rating(movie_id, user_id, rng.randint(1, 5), str(start + datetime.timedelta(rng.randrange(num_days))))
            for movie_id in movies for user_id in rng.sample(users, num_users) if rng.random() < probability[user_id]]


def parse_slowly(data, with_stars=True):
    """Parse one rating file line by line: ([(movie_id, user_id, stars, date)], None) or (None, first bad line)."""
    rows, movie_id = [], None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        line = line.removesuffix(b"\r")
        if not line:
            continue
        if re.fullmatch(rb"[0-9]{1,10}:", line) and int(line[:-1]) < 2**31:
            movie_id = int(line[:-1])
            continue
        row = None
        if not with_stars and re.fullmatch(rb"[0-9]{1,11}", line):
            row = int(line), 0, None
        elif with_stars and (fields := re.fullmatch(rb"([0-9]{1,11}),([1-5]),([0-9]{4}-[0-9]{2}-[0-9]{2})", line)):
            try:
                row = int(fields[1]), int(fields[2]), datetime.date.fromisoformat(fields[3].decode())
            except ValueError:
                row = None
        if row is None or movie_id is None:
            return None, number
        rows.append((movie_id, *row))
    return rows, None


def read_rows(out_dir):
    """Read ratings.parquet with pyarrow alone, as the ids and dates that its indices and days stand for."""
    table = pq.read_table(out_dir / "ratings.parquet")
    epoch = datetime.date.fromisoformat(table.schema.metadata[b"day_epoch"].decode())
    users = pq.read_table(out_dir / "users.parquet")["user_id"].to_pylist()
    movies = pq.read_table(out_dir / "movies.parquet")["movie_id"].to_pylist()
    return [SimpleNamespace(movie_id=movies[row["movie_idx"]], user_id=users[row["user_idx"]], stars=row["stars"],
                            date=str(epoch + datetime.timedelta(row["day"])), split=row["split"],
                            user_idx=row["user_idx"], movie_idx=row["movie_idx"], day=row["day"])
            for row in table.to_pylist()]


def snapshot(folder):
    """Return every path under a folder, hidden ones too, with its bytes (None for a folder)."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in Path(folder).rglob("*")}


@pytest.fixture(scope="session")
def kit():
    """The functions above: pytest's importlib mode has no module to import them from."""
    return SimpleNamespace(Rating=Rating, rating_text=rating_text, title_text=title_text, probe_text=probe_text,
                           draw_ratings=draw_ratings, parse_slowly=parse_slowly, read_rows=read_rows,
                           snapshot=snapshot)


@pytest.fixture
def write_raw(tmp_path):
    """Write a raw folder from file contents, or from `ratings` with as many files as `num_files`."""

    def write(files=None, *, ratings=None, num_files=1, eol="\n", titles=None, probe=None, name="raw"):
        raw_dir = tmp_path / name
        raw_dir.mkdir()
        files = dict(files or {})
        if ratings is not None:
            num_lines = -(-len(ratings) // num_files)
            for k in range(num_files):
                text = rating_text(ratings[k * num_lines:(k + 1) * num_lines], eol)
                files.setdefault(f"combined_data_{k + 1}.txt", text)
            files.setdefault("movie_titles.csv", title_text(sorted({rating.movie_id for rating in ratings})))
        if titles is not None:
            files["movie_titles.csv"] = titles
        if probe is not None:
            files["probe.txt"] = probe_text(probe)
        for file_name, data in files.items():
            (raw_dir / file_name).write_bytes(data)
        return raw_dir

    return write


@pytest.fixture
def run(capsys):
    """Run the command in this process: exit code, and what it printed."""

    def run(raw_dir, out_dir, *flags):
        capsys.readouterr()
        try:
            code = main(["--raw_dir", str(raw_dir), "--out_dir", str(out_dir), *map(str, flags)])
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return SimpleNamespace(code=code, out=printed.out, err=printed.err)

    return run


@pytest.fixture
def preprocess(tmp_path, write_raw, run):
    """Write a raw folder, run the command, demand success, return the folder of the data set."""
    count = iter(range(1000))

    def preprocess(files=None, *flags, **raw):
        number = next(count)
        out_dir = tmp_path / f"processed{number}"
        result = run(write_raw(files, name=f"raw{number}", **raw), out_dir, *flags)
        assert result.code == 0, result.err
        return out_dir

    return preprocess


@pytest.fixture
def refuse(tmp_path, write_raw, run):
    """Run the command on bad input, without and with an older data set; demand that it fails and changes nothing."""
    ratings = [Rating(1, 7, 3, "2005-01-01"), Rating(1, 8, 4, "2005-01-02"), Rating(2, 7, 5, "2005-01-03")]

    def refuse(raw_dir, *flags):
        space = tmp_path / "space"
        space.mkdir()
        fresh = run(raw_dir, space / "new", *flags)
        assert list(space.iterdir()) == []
        assert run(write_raw(ratings=ratings, name="older"), space / "out").code == 0
        before = snapshot(space)
        again = run(raw_dir, space / "out", *flags)
        assert snapshot(space) == before
        for result in (fresh, again):
            assert result.code == 1
            assert "Traceback" not in result.err + result.out
        message = fresh.err.replace("\r", "\n").rstrip("\n").rsplit("\n", 1)[-1]
        assert message.startswith("error: ")
        return message

    return refuse
