"""Every flag of rec.py does what its help and README say: what it prints and writes is compared with the model written
a second time (referee.py), with weights so large that every part of it matters."""

import functools
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import main
import rec
from models.checkpoint import load_model, model_entries, save_checkpoint
from preprocessing import building, movielens_preprocess
from recommending import batch, parts
from recommending.recommender import Recommender
from training.batches import load_dataset
from training.evaluation import fold_in_movies

spec = importlib.util.spec_from_file_location("referee", Path(__file__).with_name("referee.py"))
referee = importlib.util.module_from_spec(spec)
spec.loader.exec_module(referee)

NUM_USERS, NUM_MOVIES, LAST = 60, 40, 699
FIRST_DAY = np.datetime64("2001-03-05")
TITLES = {0: "Good, the Bad and the Ugly, The", 1: "Élan", 2: "Twin", 3: "Twin", 4: "1984"}
NOBODY = ["--user_id", "5", "--fallback", "popular"]


def movie_id(movie: int) -> int:
    return 5 * movie + 2


def user_id(user: int) -> int:
    return 3 * user + 1000


def write_raw(folder: Path) -> None:
    """User 0 rates all movies but 36 to 38, which nobody rates, user 1 a single one; movie 39 is rated at last only."""
    rng = np.random.default_rng(0)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(NUM_USERS):
        rated = rng.permutation(36)[:{0: 36, 1: 1}.get(user, rng.integers(6, 25))].tolist()
        days = rng.integers(rng.integers(0, LAST - 9), LAST + 1, len(rated)).tolist()
        if user in (0, 7):
            rated, days = [*rated, 39], [0, *days[1:], LAST]
        stars = np.clip(np.round(2 * rng.normal(3.3 + np.sin(rated) + np.cos(user) / 2, 0.8)), 1, 10) / 2
        seconds = (FIRST_DAY + np.array(days)).astype("datetime64[s]").astype(int)
        lines += [f"{user_id(user)},{movie_id(movie)},{given},{second}"
                  for movie, given, second in zip(rated, stars, seconds, strict=True)]
    folder.mkdir()
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(
        f'{movie_id(movie)},"{TITLES.get(movie, f"Movie {movie}")}{f" ({1950 + movie})" * (movie % 9 != 4)}",x\n'
        for movie in range(NUM_MOVIES)), encoding="utf-8")


@torch.no_grad()
def draw_weights(run: Path, data: Path, level: bool = False) -> None:
    """Draw a checkpoint's weights anew, so large that every part matters; `level`: all movies are made the same."""
    model, checkpoint = load_model(run / "best.pt", json.loads((data / "meta.json").read_text())["fingerprint"])
    torch.manual_seed(0)
    for name, weight in (dict(model.named_parameters()) | dict(model.named_buffers())).items():
        if name.endswith("user_embedding") or isinstance(weight, torch.nn.Parameter):
            weight.copy_(weight * ("log_" in name) + 0.35 * torch.randn(weight.shape))
    model.relevance.weights.copy_(torch.tensor([[0.7, 1.2, 0.3], [0.9, 0.8, 0.5]]))
    if model.item_based is not None:
        fold_in_movies(model, load_dataset(data, with_validation=True))
    if level:  # without the MLP, which makes equal vectors of equal rows but for rounding
        for weight in (*model.user_based.movie_tower.out.parameters(), *(
                weight for weight in model.state_dict().values() if weight.shape[:1] == (NUM_MOVIES,))):
            weight[:] = weight[0].clone() if len(weight) == NUM_MOVIES else 0
    save_checkpoint(run / "best.pt", checkpoint | model_entries(model))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set and runs: the user side alone, fitted again with the validation ratings; both sides, not fitted again;
    and both of these with movies that are all the same."""
    folder = tmp_path_factory.mktemp("flags")
    write_raw(folder / "raw")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "GROUP_ROWS", 64)  # several row groups
        assert movielens_preprocess.main(["--raw_dir", str(folder / "raw"), "--out_dir", str(folder / "data"),
                                          "--latest_n", "3", "--val_fraction", "0.2"]) == 0
    for run, *flags in (("user", "--blend", "user"), ("both", "--blend", "both", "--no-refit")):
        assert main.main(["--data_dir", str(folder / "data"), "--run_dir", str(folder / run), "--embedding_dim", "8",
                          "--ensemble_size", "2", "--hidden_dim", "8", "--num_threads", "1", "--epochs", "1",
                          *flags]) == 0
        shutil.copytree(folder / run, folder / f"level {run}")
        draw_weights(folder / run, folder / "data")
        draw_weights(folder / f"level {run}", folder / "data", level=True)
    return folder


class Truth:
    """A run as the referee knows it: M movies, all of a user's ratings up to a day."""

    def __init__(self, data_dir: Path, run_dir: Path) -> None:
        self.data = referee.Data(data_dir)
        self.model = referee.Model(run_dir / "best.pt", self.data)
        self.model.know(self.data.split("train", "validation"))
        self.in_training = np.bincount(self.data.split("train").movie, minlength=NUM_MOVIES)
        self.year, self.title = self.data.movies.year.fillna(0).to_numpy(int), self.data.movies.title.to_numpy()

    def history(self, user: int | None, asked: int = LAST) -> referee.Ratings:
        table = self.data.ratings
        own = table[(table.user == user) & (table.day <= asked)]
        return referee.Ratings(*(own[name].to_numpy() for name in ("movie", "stars", "day")))

    def unseen(self, known: referee.Ratings) -> np.ndarray:
        return (self.in_training > 0) & ~np.isin(np.arange(NUM_MOVIES), known.movie)

    @functools.cached_property
    def list_scores(self) -> np.ndarray:
        """Of all users as of the last day, (U, M)."""
        return np.stack([self.model.list_scores(user, self.history(user), LAST) for user in range(NUM_USERS)])


@pytest.fixture(scope="module", params=["user", "both"])
def side(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def truth(place, side) -> Truth:
    return Truth(place / "data", place / side)


@pytest.fixture
def ask(capsys, place, side):
    """Run rec.py; return what it prints, with --json as an object."""

    def ask(*flags: object, run: str = side) -> object:
        capsys.readouterr()
        code = rec.main(["--data_dir", str(place / "data"), "--run_dir", str(place / run), *map(str, flags)])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return json.loads(printed.out) if "--json" in flags else printed.out

    return ask


def demand(rows: list[dict], order: np.ndarray, stars: np.ndarray, allowed: np.ndarray, top_n: int = 10) -> None:
    """Demand of a list the best of the movies allowed, bool (M,), by their order (M,), with these stars (M,)."""
    found = np.array([(row["movie_id"] - 2) // 5 for row in rows], int)
    assert [row["rank"] for row in rows] == list(range(1, min(top_n, allowed.sum()) + 1))
    assert len(set(found.tolist())) == len(found) and allowed[found].all()
    np.testing.assert_allclose(order[found], -np.sort(-order[allowed])[:top_n], atol=2e-4)
    np.testing.assert_allclose([row["stars"] for row in rows], stars[found], atol=2e-4)


def test_a_list_holds_the_best_unseen_movies_of_what_was_known_on_the_day(ask, truth):
    """Ratings up to and on the day, drifts and moods of that day; a day outside the data set is its first or last, the
    default; what is rated later is listed again."""
    for user in (0, 1, 7):
        days = truth.history(user).day
        for asked in (None, -400, 0, 301, days[-1] - 1, days[-1], days[len(days) // 2], LAST, 5000):
            day = LAST if asked is None else np.clip(asked, 0, LAST)
            flags = ["--user_id", user_id(user)] + ([] if asked is None else ["--date", FIRST_DAY + asked])
            known = truth.history(user, day)
            score = truth.model.list_scores(user, known, day)
            stars = truth.model.stars(truth.model.scores(user, known, day))
            demand(ask(*flags, "--json")["recommendations"], score, stars, truth.unseen(known))
            if asked == days[-1]:
                assert ask(*flags).startswith(f"user {user_id(user)}, {len(known.movie)} movie")


@pytest.mark.parametrize("rank_by", ["rating", "relevance"])
@pytest.mark.parametrize("asked", [None, 420])
@pytest.mark.parametrize("user", [None, 7])
def test_ratings_given_add_to_those_of_a_user_and_count_as_of_the_day_asked(ask, truth, tmp_path, user, asked, rank_by):
    """Those of a file too, and those typed win; with the stars of the order by rating in the order by relevance."""
    flags, asked = ([], LAST) if asked is None else (["--date", FIRST_DAY + asked], asked)
    known = truth.history(user, asked)
    typed = {0: 4.5, 5: 1.0, 20: 2.5, **dict.fromkeys(known.movie[:2].tolist(), 0.5)}
    kept = ~np.isin(known.movie, list(typed))
    known = referee.Ratings(*(np.append(column[kept], new) for column, new in zip(
        known, (list(typed), list(typed.values()), [asked] * len(typed)), strict=True)))
    (tmp_path / "mine.csv").write_text(f"{movie_id(0)},1\n{movie_id(20)},2.5\n")
    answer = ask("--json", *flags, "--rank_by", rank_by, "--ratings_file", tmp_path / "mine.csv", "--include_seen",
                 "--min_ratings", 0, "--top_n", 100, "--rate", ",".join(
                     f"{movie_id(movie)}:{given}" for movie, given in typed.items() if movie != 20),
                 *([] if user is None else ["--user_id", user_id(user)]))
    score = truth.model.list_scores(user, known, asked)
    order = score if rank_by == "rating" else truth.model.relevance(user, known, asked)
    stars = truth.model.stars(truth.model.scores(user, known, asked))
    demand(answer["recommendations"], order, stars, np.ones(NUM_MOVIES, bool), 100)
    assert answer["kind"] == ("new" if user is None else "user") and answer["ranked_by"] == rank_by
    given = {row["movie_id"]: row["rated"] for row in answer["recommendations"] if row["rated"] is not None}
    assert given == dict(zip(map(movie_id, known.movie.tolist()), known.stars.tolist(), strict=True))


@pytest.mark.parametrize("asked", [None, 420])
@pytest.mark.parametrize("user", [None, 1, 7])
def test_predictions_are_the_plain_ones_of_the_day_for_all_movies_that_are_named(ask, truth, user, asked):
    """Whatever their training ratings and years, and also those that the person has rated."""
    flags, day = ([], LAST) if asked is None else (["--date", FIRST_DAY + asked], asked)
    typed = {0: 4.5, 20: 2.5}
    known = truth.history(user, day)
    kept = ~np.isin(known.movie, list(typed))
    known = referee.Ratings(*(np.append(column[kept], new) for column, new in zip(
        known, (list(typed), list(typed.values()), [day] * len(typed)), strict=True)))
    flags += ["--rate", ",".join(f"{movie_id(movie)}:{given}" for movie, given in typed.items())]
    flags += [] if user is None else ["--user_id", user_id(user)]
    order = np.random.default_rng(0).permutation(NUM_MOVIES).tolist()
    answer = ask("--json", "--predict", ",".join(str(movie_id(movie)) for movie in order), *flags)
    stars = truth.model.stars(truth.model.scores(user, known, day))
    demand(answer["recommendations"], stars, stars, np.ones(NUM_MOVIES, bool), NUM_MOVIES)
    assert answer["kind"] == "predicted" and answer["ranked_by"] == "rating"
    given = {row["movie_id"]: row["rated"] for row in answer["recommendations"] if row["rated"] is not None}
    assert given == dict(zip(map(movie_id, known.movie.tolist()), known.stars.tolist(), strict=True))


@pytest.mark.parametrize("user", [None, 7, 17])
def test_reasons_are_the_exact_parts_of_a_score_the_three_largest_first(ask, truth, place, side, user):
    """Of both sides the parts count half, for half of the score is the other side's."""
    typed = {3: 0.5, 11: 5.0, 20: 1.5, 30: 2.0}
    known = truth.history(user) if user else referee.Ratings(
        np.array(list(typed)), np.array(list(typed.values())), np.full(len(typed), LAST))
    flags = ["--user_id", user_id(user)] if user else ["--rate", ",".join(f"{movie_id(k)}:{typed[k]}" for k in typed)]
    effects = np.stack([truth.model.effects(user, known, movie) for movie in range(NUM_MOVIES)])  # (M, R)
    expected = {movie_id(movie): [(movie_id(known.movie[k]), truth.title[known.movie[k]], known.stars[k], effect[k])
                                  for k in np.argsort(-effect) if effect[k] >= 0.005]
                for movie, effect in enumerate(effects)}
    rows = ask(*flags, "--explain", "--json", "--top_n", 100)["recommendations"]
    number = [len(expected[row["movie_id"]]) for row in rows]
    assert max(number) > 3 if user else min(number) < 3  # more reasons than are shown, and fewer
    for row in rows:
        found = [tuple(reason.values()) for reason in row["because"]]
        assert found == [(*names, pytest.approx(effect, abs=1e-4)) for *names, effect in expected[row["movie_id"]][:3]]
    reasons = [f"      {effect:+.2f} for {given:g} star{'s' * int(given != 1)} given to {title}"
               for _, title, given, effect in expected[rows[0]["movie_id"]][:3]]
    assert reasons and ask(*flags, "--explain", "--top_n", 1).splitlines()[3:] == reasons
    if user:
        recommender = Recommender.load(place / side, place / "data")
        lines = recommender.recommend(history := recommender.history_of(user_id(user)), 100)
        recommender.explain(history, lines, num_reasons=100)
        for line in lines:
            assert [reason.effect for reason in line.because] == pytest.approx(
                [effect for *_, effect in expected[line.movie_id]], abs=1e-4)


def test_similar_movies_are_those_of_the_highest_cosine_of_vectors_without_biases(ask, truth):
    vectors = truth.model.users.vectors[..., :-1].reshape(NUM_MOVIES, -1)
    cosines = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ vectors[12] / np.linalg.norm(vectors[12])
    for top_n, allowed in ((1, truth.in_training > 0), (10, truth.in_training >= 0), (100, truth.in_training > 0)):
        answer = ask("--similar_to", movie_id(12), "--json", "--top_n", top_n, "--min_ratings", 1 * (top_n != 10))
        assert (answer["kind"], answer["movie_id"], answer["user_id"]) == ("similar", movie_id(12), None)
        allowed[12] = False
        rows = [row | {"stars": row["similarity"]} for row in answer["recommendations"]]
        demand(rows, cosines, cosines, allowed, top_n)


def test_popular_movies_are_those_of_the_most_ratings_with_their_shrunk_means(ask, truth):
    rows = ask(*NOBODY, "--json", "--top_n", 100)["recommendations"]
    expected = sorted(np.flatnonzero(truth.in_training), key=lambda movie: (-truth.in_training[movie], movie))
    assert [row["movie_id"] for row in rows] == [movie_id(movie) for movie in expected]
    assert [row["num_ratings"] for row in rows] == truth.in_training[expected].tolist()
    assert [row["year"] for row in rows] == [truth.year[movie] or None for movie in expected]
    means = truth.model.users.stars_mean + truth.model.users.mean[expected]
    assert [row["stars"] for row in rows] == pytest.approx(means, abs=1e-4)


@pytest.mark.parametrize("top_n", [1, 3, 10, 25, 1000])
def test_everybodys_lists_are_those_that_each_gets_alone(ask, truth, tmp_path, top_n):
    out = tmp_path / "recs.parquet"
    assert ask("--all_users", "--out", out, "--top_n", top_n) == (
        f"wrote the lists of {NUM_USERS - 1} users to {out}; 1 user had nothing left that could be listed\n")
    table = pq.read_table(out)
    assert {field.name: str(field.type) for field in table.schema} == {
        "user_id": "int64", "rank": "int32", "movie_id": "int32", "stars": "float"}
    lists = table.to_pandas()
    assert lists["user_id"].is_monotonic_increasing
    for user, score in enumerate(truth.list_scores):
        rows = lists[lists["user_id"] == user_id(user)].to_dict("records")
        stars = truth.model.stars(truth.model.scores(user, truth.history(user), LAST))
        demand(rows, score, stars, truth.unseen(truth.history(user)), top_n)
    alone = ask("--user_id", user_id(59), "--json", "--top_n", top_n)["recommendations"]
    assert [row["movie_id"] for row in rows] == [row["movie_id"] for row in alone]


def test_everybodys_lists_go_on_after_an_interruption_to_the_same_bytes(ask, place, side, tmp_path, monkeypatch,
                                                                        capsys):
    monkeypatch.setattr(parts, "GROUPS_PER_PART", 2)
    ask("--all_users", "--out", tmp_path / "whole.parquet", "--top_n", 4)
    flags = ["--data_dir", f"{place}/data", "--run_dir", f"{place / side}", "--all_users", "--out",
             str(tmp_path / "recs.parquet"), "--top_n"]
    lists_of, made = batch.lists_of, []

    def interrupted(*args: object) -> object:
        made.append(1)
        if len(made) == 6:
            raise KeyboardInterrupt
        return lists_of(*args)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "lists_of", interrupted)
        assert rec.main([*flags, "4"]) == 130
    assert rec.main([*flags, "5"]) == 1
    assert "was begun with another top_n; go on with the same, or remove that folder" in capsys.readouterr().err
    assert rec.main([*flags, "4"]) == 0
    assert (tmp_path / "recs.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recs.parquet", "whole.parquet"]


def test_products_of_exported_vectors_are_the_scores_of_the_lists(ask, truth, tmp_path):
    assert ask("--export_vectors", tmp_path / "out").startswith(f"wrote the vectors of {NUM_USERS} users and 36 movies")
    exported = {path.stem: np.load(path) for path in (tmp_path / "out").glob("*.npy")}
    assert exported["user_ids"].tolist() == [user_id(user) for user in range(NUM_USERS)]
    movies = np.flatnonzero(truth.in_training)
    assert exported["movie_ids"].tolist() == [movie_id(movie) for movie in movies]
    products = exported["user_vectors"] @ exported["movie_vectors"].T
    assert exported["user_vectors"].dtype == exported["movie_vectors"].dtype == np.float32
    np.testing.assert_allclose(products, truth.list_scores[:, movies], atol=2e-4)


def test_an_export_says_which_coordinates_are_biases_so_that_similar_movies_can_be_found_in_it(ask, truth, tmp_path):
    ask("--export_vectors", tmp_path / "out")
    movie_ids, movies, users = (np.load(tmp_path / "out" / f"{name}.npy") for name in (
        "movie_ids", "movie_vectors", "user_vectors"))
    said = json.loads((tmp_path / "out" / "vectors.json").read_text())
    blocks = said["blocks"]
    assert [block["start"] for block in blocks] == [0, *(block["stop"] for block in blocks[:-1])]
    assert blocks[-1]["stop"] == movies.shape[1] == users.shape[1]
    for block in blocks:
        part = slice(block["start"], block["stop"])
        constant = {"user bias": movies, "movie bias": users}.get(block["what"])
        if block["what"] == "user bias":
            assert len(np.unique(movies[:, part])) == 1
        elif block["what"] == "movie bias":  # as far as the user's towers, or the means, are trusted
            count = np.array([len(truth.history(user).movie) for user in range(NUM_USERS)])
            trust = count / (count + 2)
            share = 1 - trust if block["towers"] == "means" else trust
            assert np.corrcoef(users[:, part][:, 0], share)[0, 1] > 0.9999
        assert (part.stop - part.start == 4) == (constant is None)
        assert block["member"] in ((None,) if block["towers"] == "means" else (0, 1))
    own = [range(block["start"], block["stop"]) for block in blocks
           if block["towers"] == "user-based" and block["what"] == "vector"]
    vectors = movies[:, np.concatenate(own)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors[movie_ids == movie_id(12)][0]
    order = np.argsort(-cosines)[1:11]
    rows = ask("--similar_to", movie_id(12), "--json")["recommendations"]
    assert [row["movie_id"] for row in rows] == movie_ids[order].tolist()
    assert [row["similarity"] for row in rows] == pytest.approx(cosines[order].tolist(), abs=1e-4)
    assert said["as_of"] == str(FIRST_DAY + LAST)
    assert said["stars"] == "0.5 + 0.5 * sum over thresholds of 1 / (1 + exp(threshold - slope * prediction))"
    score = movies @ users[3] + np.load(tmp_path / "out" / "margins.npy")
    stars = 0.5 + 0.5 * (1 / (1 + np.exp(said["thresholds"] - said["slope"] * score[:, None]))).sum(1)
    rows = ask("--user_id", user_id(3), "--json", "--top_n", 100)["recommendations"]
    predicted = dict(zip(movie_ids.tolist(), stars.tolist(), strict=True))
    assert [row["stars"] for row in rows] == pytest.approx([predicted[row["movie_id"]] for row in rows], abs=1e-3)


def test_the_map_shows_the_two_principal_axes_of_the_vectors_that_pass(ask, truth, tmp_path):
    passing = np.flatnonzero((truth.in_training > 0) & (truth.year >= 1960) & (truth.year <= 1985))
    path = tmp_path / "map.SVG"
    flags = ["--map", path, "--year_from", 1960, "--year_to", 1985]
    answer = ask(*flags, "--json")
    assert path.read_bytes().startswith(b"<?xml") and answer["kind"] == "map" and answer["file"] == str(path)
    assert [movie["movie_id"] for movie in answer["movies"]] == [movie_id(movie) for movie in passing]
    assert [movie["title"] for movie in answer["movies"]] == truth.title[passing].tolist()
    vectors = truth.model.users.vectors[passing, :, :-1].reshape(len(passing), -1)
    left, size, axes = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    assert answer["variance"] == pytest.approx((size**2 / (size**2).sum())[:2].tolist(), abs=1e-4)
    for axis, name in enumerate("xy"):
        sign = np.sign(axes[axis, np.abs(axes[axis]).argmax()])
        np.testing.assert_allclose([movie[name] for movie in answer["movies"]], left[:, axis] * size[axis] * sign,
                                   atol=2e-4)


def test_movies_that_are_equal_stand_in_the_order_of_their_ids(ask, side, tmp_path):
    for flags in (["--user_id", user_id(21)], ["--rate", f"{movie_id(9)}:4", "--rank_by", "relevance"],
                  ["--user_id", user_id(7), "--rank_by", "relevance"], ["--rate", f"{movie_id(9)}:4"],
                  ["--similar_to", movie_id(13)]):
        rows = ask(*flags, "--json", "--top_n", 100, run=f"level {side}")["recommendations"]
        listed = [row["movie_id"] for row in rows]
        assert len(listed) > 10 and listed == sorted(listed), flags
    for top_n in (5, 1000):
        ask("--all_users", "--out", tmp_path / f"{top_n}.parquet", "--top_n", top_n, run=f"level {side}")
        lists = pq.read_table(tmp_path / f"{top_n}.parquet").to_pandas().groupby("user_id")["movie_id"]
        assert lists.apply(lambda listed: listed.is_monotonic_increasing).all()
