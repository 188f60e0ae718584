import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_train, train_floor
from benchmarks.train_floor import Clock, Enough, StepShape, least_work
from models.user_tower import Context
from training import engine as engine_module
from training.batches import batch_of

PROMISED = {"ratings_per_s", "pooled_ratings_per_s", "ratio_plain_128", "ratio_plain_8192", "peak_rss_mib",
            "train_bytes_per_step_sent"}


@pytest.fixture
def small(monkeypatch) -> None:
    """A Netflix of 4,000 users and 300 movies, and a machine measured in a moment."""
    monkeypatch.setattr(bench_train, "NETFLIX_USERS", 4000)
    monkeypatch.setattr(bench_train, "NETFLIX_MOVIES", 300)
    monkeypatch.setattr(bench_train, "NETFLIX_RATINGS", 4000 * 50)
    monkeypatch.setattr(train_floor, "COPY_BYTES", 2**16)
    monkeypatch.setattr(train_floor, "PRODUCT_SIZE", {"cpu": 64})


def make_engine() -> engine_module.Engine:
    data = bench_train.make_dataset(40_000, 0)
    return bench_train.make_engine(data, 16, torch.device("cpu"), 0)


def test_the_last_line_has_the_promised_figures(small, capsys):
    flags = ["--ratings", "40000", "--seconds", "0.05", "--num_threads", "1", "--device", "cpu", "--batch_size", "16"]
    assert bench_train.main([*flags, "--floor"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result.keys() >= PROMISED and all(result[name] > 0 for name in PROMISED)
    assert result["device"].startswith("cpu") and result["batch_size"] == 16
    assert result["ratio_plain_128"] == pytest.approx(result["ratings_per_s"] / result["plain_128_ratings_per_s"],
                                                      abs=0.06)
    engine = make_engine()
    of_model, of_tables, of_relevance = (4 * sum(each.numel() for each in parameters) for parameters in (
        engine.model.parameters(), engine.tables.tables, engine.relevance.relevance.parameters()))
    assert of_model - of_tables < result["train_bytes_per_step_sent"] - of_relevance <= of_model
    engine.step(batch_of(engine.ratings, torch.arange(3)), 1, 1.0)
    engine.relevance_every = 3
    met = len(engine.distinct) / engine.model.config.num_movies
    assert met < 1 and bench_train.sent_bytes(engine) == of_model - of_tables + met * of_tables + of_relevance // 3
    stages = result["floor"]["stages"]
    assert stages.keys() == least_work(engine, StepShape(1, 1, 1, 1, 1)).keys()
    assert all(stage["ms"] > 0 for stage in stages.values())
    assert sum(stage["ms"] for stage in stages.values()) == pytest.approx(result["floor"]["step_ms"], abs=0.01)


def test_after_the_stages_were_timed_their_functions_are_as_before(small):
    engine, backward = make_engine(), torch.autograd.backward
    train_floor.measure_stages(engine, 0.01)
    assert engine_module.batch_of is batch_of and torch.autograd.backward is backward


def test_ratings_have_the_shape_of_netflix():
    ratings = bench_train.make_ratings(300_000, 0)
    count = ratings.offset.diff()
    assert len(count) == round(300_000 / (100_480_507 / 480_189)) and count.min() >= 1
    assert len(ratings) == pytest.approx(300_000, rel=0.03) and count.max() <= 17_653
    assert float(count.double().median()) == pytest.approx(96, rel=0.1)
    user_idx, day = ratings.user_idx(), ratings.day.long()
    assert (day.diff()[user_idx.diff() == 0] >= 0).all() and day.min() >= 0 and day.max() < 2243
    shares = torch.bincount(ratings.stars.long(), minlength=6)[1:] / len(ratings)
    assert shares.tolist() == pytest.approx(bench_train.STARS_SHARES, abs=0.005)
    of_movie = np.sort(torch.bincount(ratings.movie_idx.long(), minlength=17_770).numpy())[::-1]
    assert len(of_movie) == 17_770 and 0.5 < of_movie[:1777].sum() / len(ratings) < 0.9  # the popular tenth
    assert 0.001 < of_movie[0] / len(ratings) < 0.005
    assert torch.equal(ratings.movie_idx, bench_train.make_ratings(300_000, 0).movie_idx)
    assert not torch.equal(ratings.movie_idx, bench_train.make_ratings(1_000_000, 1).movie_idx[:len(ratings)])


def test_the_engine_is_what_main_would_train_with_a_table_for_all_of_netflix(small):
    engine = make_engine()
    assert len(engine.model.user_embedding) == len(engine.user_rows.table) == 4000
    assert engine.model.config.num_users == 800 and engine.num_steps == 50
    assert engine.settings == engine_module.Settings(batch_size=16)
    assert engine.user_rows.table is engine.model.user_embedding


def test_least_work_of_the_layers_is_what_torch_counts(small):
    engine = make_engine()
    model, config = engine.model, engine.model.config
    batch = batch_of(engine.ratings, torch.arange(30))
    movies = torch.arange(70)
    with FlopCounterMode(display=False) as movie_counter, torch.no_grad():
        model.movie_tower(movies)
    shape = StepShape(30, 0, 0, 0, 70)
    assert least_work(engine, shape)["movie tower"][1] == movie_counter.get_total_flops() > 0
    table, none = model.movie_table(), Context(*(column[:0] for column in batch.context()))
    with FlopCounterMode(display=False) as user_counter, torch.no_grad():
        model.user_tower.regression(torch.zeros(30, config.user_dim), none, table, torch.zeros(0))
    first_layer = 2 * 30 * config.hidden_dim * (config.user_dim + config.pooled_dim + 3)  # once for each group
    assert least_work(engine, shape)["user tower"][1] == user_counter.get_total_flops() + first_layer > 0


def test_least_work_of_the_optimizers_counts_relevance_where_it_is_trained(small):
    engine = make_engine()
    relevance = 28 * sum(parameter.numel() for parameter in engine.relevance.relevance.parameters())
    every = least_work(engine, StepShape(1, 2, 1, 1, 2))["optimizers"][0]
    engine.relevance_every = 4
    assert every - least_work(engine, StepShape(1, 2, 1, 1, 2))["optimizers"][0] == pytest.approx(relevance * 3 / 4)


def test_least_work_of_two_ratings_by_hand(small):
    """One user, a context and a target rating of two movies; 4 members of 32, so 33 with the bias; 32 pooled."""
    work = least_work(make_engine(), StepShape(1, 2, 1, 1, 2))
    assert work["batch assembly"] == (2 * (5 + 16), 0)
    operations = 4 * (34 * 35 + 33**3 / 3 + 2 * 33**2 + 2 * 33)
    assert work["ridge solve"] == (4 * (4 * (33 + 2) + 1), pytest.approx(operations))
    assert work["gather-dot"] == (4 * 4 * (33 + 2), 2 * 4 * 33)


def test_the_clock_counts_whole_steps_after_the_warm_up(monkeypatch):
    now = iter([0.0, 10.0, 10.4, 10.9, 11.5, 11.6])  # begun; warm-up over; after three steps; the end
    monkeypatch.setattr(train_floor.time, "perf_counter", lambda: next(now))
    clock = Clock(1.0, torch.device("cpu"), warm_up=2)
    for size in (500, 600, 10, 20):
        clock.update(size)
    with pytest.raises(Enough):
        clock.update(40)
    assert (clock.steps, clock.ratings, clock.elapsed_s) == (3, 70, pytest.approx(1.6))


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--ratings", "0"], "--ratings must be at least 1000, not 0"),
    (["--seconds", "nan"], "--seconds must be above 0 and finite, not nan"),
    (["--batch_size", "0"], "--batch_size must be at least 1, not 0"), (["--floors"], "unrecognized arguments"),
    (["--num_threads", "0"], "--threads must be at least 1, not 0")])
def test_wrong_flags_are_named(flags, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        bench_train.main(flags)
    assert end.value.code == 2 and sentence in capsys.readouterr().err
