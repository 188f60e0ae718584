"""Code that only large data reach runs here on small data: with blocks, limits and numbers of threads set low, the same
bytes come out, or, where float sums are taken in another order, the same numbers to a millionth."""

import importlib
import json
import os
import shutil
import signal
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import torch

import main
import preprocessing
import rec
from models import two_tower
from models.blend import Blend
from models.config import ModelConfig
from models.ops import backend
from models.ops import numba_kernels as kernels
from models.ops.ragged import RatingPattern, ridge_solve
from models.ops.ranks import ALONE, Ranks
from models.ops.threads import shared_out
from preprocessing import building, dataset, indexing, netflix_preprocess, parsing
from preprocessing.dataset import FILES, DataError, Movies, Users, UsersFile, reader, writer
from recommending import batch, parts, top_k
from recommending.top_k import BestProducts
from training import batches, build, halves, relevance, trainer
from training.batches import DataSet, RatingTensors, batch_of, by_movie, load_dataset
from training.engine import Settings
from training.metrics import evaluate_ranking
from training.optimizer import planned_epochs
from training.relevance import fit_weights
from training.trainer import Trainer

Patches = list[tuple[ModuleType, str, object]]


def set_low(monkeypatch: pytest.MonkeyPatch, patches: Patches) -> None:
    for module, name, value in patches:
        assert hasattr(module, name)
        monkeypatch.setattr(module, name, value)


# --- preprocessing -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw(raw_dir, tmp_path_factory) -> Path:
    """The raw files, and a probe of every ninth rating of each file."""
    folder = tmp_path_factory.mktemp("large") / "raw"
    shutil.copytree(raw_dir, folder)
    lines = [line for path in sorted(folder.glob("combined_data_*.txt")) for line in path.read_text().splitlines()]
    probe = [line.split(",")[0] for number, line in enumerate(lines) if line.endswith(":") or number % 9 == 0]
    (folder / "probe.txt").write_text("\n".join(probe) + "\n")
    return folder


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory) -> Path:
    return preprocess(raw, tmp_path_factory.mktemp("large") / "whole")


def preprocess(raw_dir: Path, out_dir: Path, *flags: str) -> Path:
    assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(out_dir), *flags]) == 0
    return out_dir


BLOCKS = (parsing.MovieRuns.blocks, "__defaults__", (50,))  # of test pattern


@pytest.mark.parametrize(("patches", "flags"), [
    ([(parsing, "RANGE_BYTES", 1500), (parsing, "num_cores", lambda: 2)], ()),
    ([(parsing, "RANGE_BYTES", 1500), (parsing, "SLACK_BYTES", 21), (parsing, "num_cores", lambda: 1)], ()),
    ([(parsing, "BLOCK_BYTES", 90)], ()),
    ([(indexing, "_CACHED_ROWS", 101), (indexing, "_TABLED_ROWS", 997), BLOCKS], ()),
    ([(indexing, "_CACHED_ROWS", 101), (indexing, "_TABLED_ROWS", 997), (indexing, "_TABLE_LIMIT", 0)], ()),
    ([(indexing, "_TABLE_LIMIT", 0)], ("--max_memory", "1")),
    ([(building, "num_cores", lambda: 3), (parsing, "RANGE_BYTES", 30_000), BLOCKS], ("--max_memory", "1")),
], ids=["processes", "slack", "blocks", "table", "search", "search on disk", "cores on disk"])
def test_preprocessing_in_small_pieces_gives_the_same_bytes(raw, whole, tmp_path, monkeypatch, patches, flags):
    set_low(monkeypatch, patches)
    out_dir = preprocess(raw, tmp_path / "out", *flags)
    assert [(out_dir / name).read_bytes() for name in FILES] == [(whole / name).read_bytes() for name in FILES]
    assert json.loads((whole / "meta.json").read_text())["split"]["method"] == "probe"


@pytest.mark.parametrize("above", [0, 1])
def test_users_are_numbered_alike_on_either_side_of_the_limit(raw, whole, tmp_path, monkeypatch, above):
    monkeypatch.setattr(indexing, "_TABLE_LIMIT", pq.read_table(whole / "users.parquet")["user_id"][-1].as_py() + above)
    out_dir = preprocess(raw, tmp_path / "out")
    assert [(out_dir / name).read_bytes() for name in FILES] == [(whole / name).read_bytes() for name in FILES]


def test_what_memory_does_not_hold_is_sorted_in_parts(raw, tmp_path, monkeypatch):
    """One MiB less what the processes take leaves a tenth of it, which is 10,485 ratings of 10 bytes."""
    monkeypatch.setattr(building, "GROUP_ROWS", 700)
    whole, sizes, sort = preprocess(raw, tmp_path / "whole", "--max_memory", "4000"), [], building.sort_in_threads
    monkeypatch.setattr(building, "sort_in_threads", lambda keys: sizes.append(len(keys)) or sort(keys))
    parts = preprocess(raw, tmp_path / "parts", "--max_memory", "1")
    assert [(parts / name).read_bytes() for name in FILES] == [(whole / name).read_bytes() for name in FILES]
    assert len(sizes) == 2 and max(sizes) <= 10_485 and sum(sizes) == 14_000


@pytest.mark.parametrize(("mib", "expected"), [(1_354, None), (1_353, 99_929_292), (500, 10_485_760), (100, 1_048_576)])
def test_netflix_needs_a_gigabyte_to_be_sorted_in_memory(tmp_path, mib, expected):
    """20 bytes of text and 10 of memory a rating, beside 400 MiB that do not grow, but at least a tenth of all."""
    with open(tmp_path / "combined_data_1.txt", "wb") as file:
        file.truncate(100_000_000 * 20)  # a hole: no byte of it is on the disk
    assert netflix_preprocess.memory_for_ratings([tmp_path / "combined_data_1.txt"], mib) == expected


def test_free_memory_is_what_the_system_says(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=9, available=123, free=7))
    assert netflix_preprocess.available_bytes() == 123


@pytest.mark.parametrize(("named", "expected"), [(None, "system"), ("mimalloc", "mimalloc")])
def test_pyarrow_takes_memory_of_the_system_unless_another_allocator_is_named(monkeypatch, named, expected):
    monkeypatch.setenv("ARROW_DEFAULT_MEMORY_POOL", named or "")
    if named is None:
        monkeypatch.delenv("ARROW_DEFAULT_MEMORY_POOL")
    importlib.reload(preprocessing)
    assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == expected


def test_partitions_are_whole_row_groups_and_hold_no_more_than_allowed(monkeypatch):
    monkeypatch.setattr(building, "GROUP_ROWS", 250)
    offset = np.cumsum([0, 300, 300, 300, 300, 1000, 100, 100])  # the fifth user alone is more than allowed
    assert netflix_preprocess.partition_bounds(offset, 650) == [0, 2, 4, 5, 7]
    assert netflix_preprocess.partition_bounds(offset, 2400) == [0, 7]


@pytest.mark.parametrize(("size", "cores"), [(2**20 - 1, 2), (2**20 + 3, 1), (2**20 + 3, 2), (2**20 + 3, 7)])
def test_many_keys_are_sorted_on_any_number_of_cores(monkeypatch, size, cores):
    monkeypatch.setattr(building, "num_cores", lambda: cores)
    keys = np.random.default_rng(0).integers(-2**40, 2**40, size) // 2**25  # many are equal
    expected = np.sort(keys)
    building.sort_in_threads(keys)
    assert (keys == expected).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a parent that ends")
def test_a_worker_leaves_ctrl_c_to_its_parent_and_ends_with_it():
    out, into = os.pipe()
    if not (parent := os.fork()):
        try:
            if not os.fork():
                signal.signal(signal.SIGALRM, lambda *_: os.write(into, b" too long") and os._exit(1))
                signal.alarm(5)
                parsing._start_worker(os.getppid())
                os.kill(os.getpid(), signal.SIGINT)
                os.write(into, b"works")
                while True:
                    signal.pause()
            os.close(into)
            os.read(out, 1)  # the parent ends as soon as the worker works
        finally:
            os._exit(0)
    os.close(into)
    os.waitpid(parent, 0)
    with open(out, "rb") as pipe:
        assert pipe.read() == b"orks"  # up to the end of the worker


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cut(raw_dir, tmp_path_factory) -> Path:
    """The data set of `data_dir` in many row groups; it is the same to a run that was trained on that."""
    with pytest.MonkeyPatch.context() as patch:
        set_low(patch, [(building, "GROUP_ROWS", 700), (writer, "USERS_PER_GROUP", 64)])
        folder = preprocess(raw_dir, tmp_path_factory.mktemp("large") / "cut")
    assert pq.ParquetFile(folder / "ratings.parquet").num_row_groups > 10
    assert pq.ParquetFile(folder / "users.parquet").num_row_groups == 7
    return folder


def rows_of(tensors: RatingTensors) -> list[list[int]]:
    return [column.tolist() for column in (tensors.offset, tensors.movie_idx, tensors.stars, tensors.day)]


def expected_rows(rows: pd.DataFrame, owned: tuple[int, int], first: str = "user_idx",
                  second: str = "movie_idx") -> list[list]:
    """Return ratings in the order of a range of users, or movies, as `rows_of` does."""
    rows = rows.sort_values(first, kind="stable")
    offset = np.bincount(rows[first] - owned[0], minlength=owned[1] - owned[0]).cumsum()
    return [[0, *offset.tolist()], *(rows[name].tolist() for name in (second, "stars", "day"))]


@pytest.mark.parametrize("with_validation", [False, True])
def test_every_rank_loads_its_users_and_movies_from_many_row_groups(data_dir, cut, with_validation):
    rows = pq.read_table(data_dir / "ratings.parquet").to_pandas().astype({"split": str})
    offset = np.array([0, *rows["user_idx"].value_counts(sort=False).sort_index().cumsum()])
    parts = {"train": ["train", "validation"] if with_validation else ["train"],
             "validation": [] if with_validation else ["validation"], "test": ["test"]}
    bounds = []
    for rank in (ALONE, *(Ranks(rank, 3) for rank in range(3))):
        data, (first, last) = load_dataset(cut, rank, with_validation), rank.user_range(offset)
        owned = rows[rows["user_idx"].between(first, last - 1)]
        for name, names in parts.items():
            tensors, expected = getattr(data, name), expected_rows(owned[owned["split"].isin(names)], (first, last))
            assert tensors.owned == (first, last) and rows_of(tensors) == expected, name
        assert data.num_users == 400 and len(data.users.user_id) == last - first
        of_movies = by_movie(data, rank)
        low, high = of_movies.owned
        train = rows[rows["split"].isin(parts["train"]) & rows["movie_idx"].between(low, high - 1)]
        assert rows_of(of_movies) == expected_rows(train, (low, high), "movie_idx", "user_idx")
        bounds.append((first, last, low, high))
        assert abs(len(owned) - 14_000 / rank.size) <= 2 * np.diff(offset).max()
    for place, end in ((0, 400), (2, 91)):
        assert [(one[place], one[place + 1]) for one in bounds[:1]] == [(0, end)]
        assert [0, *(one[place + 1] for one in bounds[1:])] == [*(one[place] for one in bounds[1:]), end]


def test_users_are_read_by_row_groups_that_follow_each_other(cut, monkeypatch):
    file = UsersFile(cut)
    groups, whole = list(file.read_groups()), file.read()
    assert len(groups) == 7
    assert np.concatenate([users.user_id for users in groups]).tolist() == whole.user_id.tolist()
    assert [*np.concatenate([users.offset[:-1] for users in groups]), groups[-1].offset[-1]] == whole.offset.tolist()
    for order in ([1, 0, 2, 3, 4, 5, 6], [0, 1, 2, 3, 3, 4, 5], [1, 2, 3, 4, 5, 6, 0]):
        monkeypatch.setattr(reader, "_read_user_group", lambda *args, order=order: groups[order[args[-1]]])
        with pytest.raises(DataError, match=r"users\.parquet"):
            list(file.read_groups())


def asked(capsys: pytest.CaptureFixture, data_dir: Path, run_dir: Path, *flags: str) -> str:
    assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--json", *flags]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("user_idx", [0, 63, 64, 65, 200, 398, 399, None])
def test_a_user_of_any_row_group_gets_the_same_list(capsys, data_dir, cut, run_dir, user_idx):
    flags = ["--include_seen", "--top_n", "91"]
    if user_idx is not None:
        flags += ["--user_id", str(pq.read_table(data_dir / "users.parquet")["user_id"][user_idx].as_py())]
    assert asked(capsys, cut, run_dir, *flags) == asked(capsys, data_dir, run_dir, *flags)


@pytest.mark.parametrize(("name", "limit", "read"), [
    ("MOST_META_BYTES", lambda folder: (folder / "meta.json").stat().st_size, dataset.read_meta),
    ("MOST_GROUP_ROWS", lambda folder: 14_000, dataset.RatingsFile),
    ("MOST_ROWS_PER_BYTE", lambda folder: 400 / (folder / "users.parquet").stat().st_size, dataset.read_users),
])
def test_files_are_read_up_to_their_limits_and_not_beyond(data_dir, monkeypatch, name, limit, read):
    monkeypatch.setattr(reader, name, limit(data_dir))
    read(data_dir)
    monkeypatch.setattr(reader, name, limit(data_dir) * (1 - 1e-9) if name == "MOST_ROWS_PER_BYTE"
                        else limit(data_dir) - 2)  # a line end less is still JSON
    with pytest.raises(DataError, match="is damaged"):
        read(data_dir)


# --- training ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_of(data_dir, tmp_path_factory):
    """Train for two epochs; return what is measured, by epoch and on the test part."""
    def run(data_dir: Path = data_dir) -> list[float]:
        run_dir = tmp_path_factory.mktemp("large") / "run"
        assert main.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--epochs", "2", "--batch_size", "64",
                          "--embedding_dim", "8", "--ensemble_size", "2", "--hidden_dim", "8", "--num_threads", "1",
                          "--lr", "0.004", "--blend", "both", "--no-refit"]) == 0
        epochs = pd.read_csv(run_dir / "metrics.csv")[["train_loss", "train_rmse", "val_rmse", "val_mae", "lr"]]
        metrics = json.loads((run_dir / "test_metrics.json").read_text())
        of_test = [*metrics["two_tower"].values(), *metrics["relevance"].values()]
        return [*epochs.to_numpy().flatten(), *(value for value in of_test if value is not None)]

    run.plain = run()
    return run


def test_a_run_on_many_row_groups_is_the_same(run_of, cut):
    assert run_of(cut) == run_of.plain


@pytest.mark.parametrize("patches", [
    [(backend, "FEW_RATINGS", 10**9)],  # array operations alone
    [(backend, "FEW_RATINGS", -1)],  # compiled loops alone
    [(halves, "PIECE_RATINGS", 700)],
    [(two_tower, "MOVIES_PER_BLOCK", 7), (batches, "BLOCK_RATINGS", 999), (batches, "BLOCK_USERS", 33),
     (relevance, "BLOCK_CELLS", 91 * 19)],
], ids=["array operations", "compiled loops", "pieces", "blocks"])
def test_a_run_in_small_pieces_measures_the_same(run_of, monkeypatch, patches):
    set_low(monkeypatch, patches)
    assert run_of() == pytest.approx(run_of.plain, rel=2e-6)
    assert len(run_of.plain) == 16


def test_pieces_of_a_step_have_no_more_ratings_than_allowed(data_dir, monkeypatch):
    train = load_dataset(data_dir).train
    monkeypatch.setattr(halves, "PIECE_RATINGS", 700)
    sizes = [len(piece.row) for piece in halves.pieces(batch_of(train, torch.arange(400)))]
    assert max(sizes) <= 700 and sum(sizes) == len(train) > 10 * 700


def planted_data(num_users: int, num_ratings: int) -> DataSet:
    """Return users of one rating each, of one of five movies, all of which validation asks about too, and say that
    there are more ratings."""
    everyone = RatingTensors(torch.arange(num_users + 1), torch.arange(num_users).remainder(5).short(),
                             torch.full((num_users,), 4, dtype=torch.uint8), torch.zeros(num_users, dtype=torch.int16))
    movies = Movies(np.arange(5, dtype=np.int32), np.zeros(5, np.int16), list("abcde"),
                    np.bincount(np.arange(num_users) % 5, minlength=5).astype(np.int32))
    meta = {"stars_step": 1, "num_days": 1, "num_users": num_users,
            "split": {"num_train": num_ratings, "method": "random"}}
    return DataSet(Path(), meta, Users(np.arange(num_users), np.arange(num_users + 1)), movies, everyone, everyone,
                   everyone)


@pytest.mark.parametrize(("num_users", "batch_size", "num_steps", "epochs", "relevance_every"), [
    (480_189, 4096, 118, 8, 3),  # Netflix
    (409_599, 512, 800, 8, 3),  # one user less than 100 steps of 4096
    (102_400, 256, 400, 8, 1),  # 400 steps
    (102_399, 128, 800, 8, 1),
    (13_333, 128, 105, 9, 1),  # 120,000 / 13,333 is above 9
    (6_000, 128, 47, 20, 1),
    (120_042, 16_384, 8, 20, 1),  # of one rating each
])
def test_steps_and_epochs_follow_from_the_number_of_users(num_users, batch_size, num_steps, epochs, relevance_every):
    config = ModelConfig(num_users, 5, 1, 1, 5, 4.0, 2, 1, 2, user_dim=1, pooled_dim=1, relevance_dim=1)
    num_ratings = num_users if num_users == 120_042 else 250 * num_users
    trained = Trainer(Blend(config, with_item_based=False), planted_data(num_users, num_ratings), Settings())
    one = trained.engines[0]
    assert (one.batch_size, one.num_steps, trained.num_epochs, one.relevance_every) == (
        batch_size, num_steps, epochs, relevance_every)
    assert one.l2 == pytest.approx(5 / num_ratings)
    # About 50,000 users are measured after every epoch, or all where they are fewer.
    share = min(50_000 / num_users, 1)
    assert abs(len(trained.val_users) - num_users * share) <= 5 * (num_users * share * (1 - share))**0.5
    assert planned_epochs(num_users, num_steps, 5) == 5


def test_the_same_share_of_the_users_is_measured_after_every_epoch(data_dir, monkeypatch):
    monkeypatch.setattr(trainer, "VALIDATION_USERS", 30)
    asked, predict = [], trainer.predict_scores
    monkeypatch.setattr(trainer, "predict_scores", lambda *args: asked.append(args[-1]) or predict(*args))
    args = main.parse_args(["--embedding_dim", "8", "--ensemble_size", "2", "--epochs", "2"])
    data = load_dataset(data_dir)
    rows = list(build.build_trainer(args, data, torch.device("cpu"), ALONE).epochs())
    with_validation = data.validation.offset.diff().nonzero().squeeze(1)
    assert len(rows) == 2 == len(asked) and torch.equal(*asked) and len(with_validation) > 45
    assert {*asked[0].tolist()} < {*with_validation.tolist()} and abs(len(asked[0]) - 30) < 15


@pytest.mark.parametrize(("name", "cells"), [("BLOCK_CELLS", 1), ("BLOCK_CELLS", 91 * 7), ("STACKING_CELLS", 91 * 40)])
def test_weights_of_relevance_are_fitted_in_blocks_and_to_a_share_of_the_users(data_dir, run_dir, monkeypatch, name,
                                                                             cells):
    data, users, weights, counts = load_dataset(data_dir), torch.arange(400), [], []
    monkeypatch.setattr(relevance, "batch_of", lambda part, block, step: counts.append(len(block)) or batch_of(
        part, block, step))
    for low in (False, True):
        model = rec.Recommender.load(run_dir, data_dir).model
        if low:
            monkeypatch.setattr(relevance, name, cells)
        counts.clear()
        fit_weights(model, data.train, data.validation, users, 1, data.last_day)
        weights.append(model.relevance.weights[0].tolist())
    number = sum(counts) // 2  # of users; of each, training and validation ratings are read
    if name == "BLOCK_CELLS":
        assert (number, max(counts)) == (400, max(cells // 91, 1)) and weights[1] == pytest.approx(weights[0], rel=1e-5)
    else:
        assert abs(number - 40) < 30 and weights[1] != pytest.approx(weights[0], rel=1e-3)


def test_a_sample_of_movies_is_taken_where_more_are_rated_than_it_holds(data_dir, monkeypatch):
    rated = int((pq.read_table(data_dir / "movies.parquet")["num_train_ratings"].to_numpy() > 0).sum())
    args, data = main.parse_args(["--embedding_dim", "8", "--ensemble_size", "2"]), load_dataset(data_dir)
    probabilities = []
    for size in (rated, rated - 1, 40):
        monkeypatch.setattr(relevance, "SAMPLE", size)
        trainer = build.build_trainer(args, data, torch.device("cpu"), ALONE)
        probabilities.append(trainer.engines[0].relevance.candidates.probability)
    assert probabilities[0] is None
    assert [float(probability.sum()) for probability in probabilities[1:]] == pytest.approx([rated - 1, 40], rel=1e-5)


# --- measuring and listing ---------------------------------------------------------------------------------------


def test_ranking_is_measured_in_blocks_and_on_a_fixed_sample_of_the_users():
    chance = torch.Generator().manual_seed(0)
    scores = torch.rand(60, 40, generator=chance)
    stars = torch.randint(1, 6, (60, 4), generator=chance)
    stars[::5] = 2  # these like nothing
    movies = torch.rand(60, 40, generator=chance).argsort(1)[:, :4].flatten().short()
    test = RatingTensors(torch.arange(61) * 4, movies, stars.flatten().byte(), torch.zeros(240, dtype=torch.int16))
    liking = (stars >= 4).any(1).nonzero().squeeze(1).tolist()
    asked: list[int] = []

    def measure(**options: int) -> dict[str, float]:
        asked.clear()
        return evaluate_ranking(lambda users: asked.extend(users.tolist()) or scores[users], [], test,
                                torch.ones(40, dtype=bool), **options)

    everyone = measure()
    assert asked == liking
    for size in (1, 7, len(liking)):
        assert measure(batch_size=size) == pytest.approx(everyone, rel=1e-12)
    assert measure(max_users=len(liking)) == everyone
    sample = measure(max_users=20, batch_size=6)
    chosen = list(asked)
    assert measure(max_users=20) == pytest.approx(sample, rel=1e-12) and asked == chosen
    assert len({*chosen}) == 20 and {*chosen} < {*liking} and {*chosen} != {*liking[:20]}
    gains = []
    for user in chosen:
        places = (-scores[user]).argsort().argsort()[test.movie_idx[4 * user:4 * user + 4][stars[user] >= 4].long()]
        ideal = (1 / np.log2(2 + np.arange(len(places)))).sum()
        gains.append(sum(1 / np.log2(2 + place) for place in places.tolist() if place < 10) / ideal)
    assert sample["ndcg@10"] == pytest.approx(np.mean(gains))


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def everybody(data_dir, run_dir, tmp_path_factory) -> tuple[pd.DataFrame, Path]:
    """Everybody's lists and vectors, as they come in one piece."""
    return given_to_everybody(data_dir, run_dir, tmp_path_factory.mktemp("large"))


def given_to_everybody(data_dir: Path, run_dir: Path, folder: Path) -> tuple[pd.DataFrame, Path]:
    for flags in (("--all_users", "--out", str(folder / "lists")), ("--export_vectors", str(folder / "vectors"))):
        assert rec.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), *flags]) == 0
    return pq.read_table(folder / "lists").to_pandas(), folder / "vectors"


@pytest.mark.parametrize("patches", [
    [],
    [(parts, "GROUPS_PER_PART", 2), (batch, "USERS_PER_BLOCK", 13)],
    [(top_k, "MOVIES_PER_TILE", 16), (top_k, "HEADS", (4,)), (top_k, "PRODUCT_COST", 0)],
    [(top_k, "MOST_KEPT", 9)],
    [(top_k, "MOST_KEPT", 10)],
    [(backend, "FEW_RATINGS", 10**9)],
], ids=["row groups", "parts", "tiles", "by sorting", "not by sorting", "array operations"])
def test_everybody_s_lists_and_vectors_are_the_same_from_small_pieces_on_two_threads(
        cut, run_dir, everybody, two_threads, tmp_path, monkeypatch, patches):
    set_low(monkeypatch, patches)
    (lists, vectors), (expected, expected_vectors) = given_to_everybody(cut, run_dir, tmp_path), everybody
    columns = ["user_id", "rank", "movie_id"]
    assert lists[columns].equals(expected[columns]) and len(lists) > 3500
    assert lists["stars"].to_numpy() == pytest.approx(expected["stars"].to_numpy(), abs=2e-6)
    assert len(list(vectors.glob("*.npy"))) == 5
    for path in vectors.glob("*.npy"):
        np.testing.assert_allclose(np.load(path), np.load(expected_vectors / path.name), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("num_movies", [63, 64, 65, 1023, 1024, 1025, 2049])
@pytest.mark.parametrize("top_n", [1, 100, 101])
def test_top_k_are_those_of_a_sort_at_the_edges_of_strips_and_tiles(num_movies, top_n):
    """Small whole numbers, whose products are exact and often equal."""
    chance = torch.Generator().manual_seed(num_movies)
    users, movies = (torch.randint(-3, 4, (size, 20), generator=chance).float() for size in (9, num_movies))
    start, seen = torch.arange(10) * 5, torch.randint(num_movies, (45,), generator=chance)
    best, found = BestProducts(movies, torch.ones(num_movies, dtype=bool), users, top_n).find(users, start, seen)
    scores = users.numpy() @ movies.numpy().T
    for user in range(9):
        scores[user, seen[5 * user:5 * user + 5].numpy()] = -np.inf
        expected = np.lexsort((np.arange(num_movies), -scores[user]))[:top_n]
        kept = scores[user, expected] > -np.inf
        assert (best[user].numpy() == scores[user, expected]).all()
        assert (found[user].numpy() == expected)[kept].all()


@pytest.mark.parametrize("top_n", [1, 255, 256, 257])
@pytest.mark.parametrize("num_movies", [255, 256, 257, 511, 512, 513, 5000])
def test_the_best_of_strips_are_those_of_a_sort(num_movies, top_n):
    scores = np.random.default_rng(num_movies).integers(0, 900, num_movies).astype(np.float32)
    assert top_k.best_of(scores, top_n).tolist() == np.lexsort((np.arange(num_movies), -scores))[:top_n].tolist()


@pytest.mark.parametrize(("counts", "members"), [
    ([255, 256, 257, 0, 511, 512, 513, 1], 2), ([256] * 31, 1), ([257] * 32, 1), ([1, 0, 3] * 11, 1), ([7] * 15, 2),
    ([8] * 16, 2), ([9] * 17, 2), ([30, 0, 300], 33)], ids=str)
def test_ridge_regressions_are_numpy_s_at_the_edges_of_chunks_and_packs(monkeypatch, counts, members):
    """256 ratings are a chunk, 32 systems a pack; on two threads the bits are those of one."""
    monkeypatch.setattr(backend, "FEW_RATINGS", -1)
    monkeypatch.setattr(kernels, "FEW", 0)
    chance, size, num_users = np.random.default_rng(0), 5, len(counts)
    row, column = np.repeat(np.arange(num_users), counts), chance.integers(600, size=sum(counts))
    movies, target = chance.normal(size=(600, members, size + 1)), chance.normal(size=len(row))
    prior, l2 = chance.normal(size=(num_users, members, size)), chance.random((num_users, members, size)) + 0.1

    def solved(kind: torch.dtype, threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        leaves = [torch.tensor(each, dtype=kind).requires_grad_() for each in (movies, target, prior, l2)]
        pattern = RatingPattern(torch.tensor(row), torch.tensor(column), num_users, 600, members)
        with shared_out():
            solution, left = ridge_solve(*leaves, pattern)
            gradients = torch.autograd.grad(solution.sum(), leaves)
        torch.set_num_threads(1)
        return [solution.detach(), left, gradients[2], *gradients]

    assert all(map(torch.equal, solved(torch.float32, 1), solved(torch.float32, 2)))
    ours = [tensor.numpy() for tensor in solved(torch.float64, 1)]
    for user, member in np.ndindex(num_users, members):
        own = row == user
        x, y = movies[column[own], member, :-1], target[own] - movies[column[own], member, -1]
        inverse = np.linalg.inv(x.T @ x + np.diag(l2[user, member]))
        expected = inverse @ (x.T @ y + l2[user, member] * prior[user, member])
        for mine, theirs in ((ours[0][user, member], expected), (ours[1][own, member], y - x @ expected),
                             (ours[2][user, member], l2[user, member] * inverse.sum(0))):
            np.testing.assert_allclose(mine, theirs, rtol=1e-8, atol=1e-9)
