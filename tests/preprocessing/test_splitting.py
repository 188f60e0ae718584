import json
import math
from collections import Counter, defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing import dataset
from preprocessing.dataset import TEST, TRAIN, VALIDATION, writer
from preprocessing.splitting import SplitPlan, latest_count, split_users

NO_ROWS = np.zeros(0, np.int64)


def by_user(ratings):
    """Group {(user_id, movie_id): date} by user."""
    users = defaultdict(dict)
    for rating in ratings:
        users[rating.user_id][rating.user_id, rating.movie_id] = rating.date
    return users


def is_last(chosen, pairs, latest_n):
    """Tell whether the chosen pairs are the last `latest_n` of {pair: date}, at most half of them, whatever the order
    within a day."""
    others = [date for pair, date in pairs.items() if pair not in chosen]
    return (len(chosen) == min(latest_n, len(pairs) // 2) and chosen <= set(pairs)
            and (not chosen or min(pairs[pair] for pair in chosen) >= max(others)))


def splits_of(rows):
    splits = defaultdict(set)
    for row in rows:
        splits[row.split].add((row.user_id, row.movie_id))
    return splits


def check_validation(ratings, splits, latest_n, val_fraction):
    """Demand that a random fraction of the users gives all of its latest remaining ratings, the others none.

    Return the number of these users, and the fraction.
    """
    num_remaining, num_candidates, num_givers, num_able = 0, 0, 0, 0
    for pairs in by_user(ratings).values():
        remaining = {pair: date for pair, date in pairs.items() if pair not in splits["test"]}
        candidates, validation = min(latest_n, len(remaining) // 2), splits["validation"] & set(pairs)
        assert not validation or is_last(validation, remaining, latest_n)
        num_remaining, num_candidates = num_remaining + len(remaining), num_candidates + candidates
        num_able, num_givers = num_able + bool(candidates), num_givers + bool(validation)
    fraction = min(1, val_fraction * num_remaining / num_candidates)
    assert abs(num_givers - fraction * num_able) <= 5 * math.sqrt(num_able * fraction * (1 - fraction))
    return num_givers, fraction


@pytest.fixture(scope="module")
def ratings(kit):
    """400 users with 1 to 60 ratings on 12 days."""
    ratings = kit.draw_ratings(30, num_users=400, num_movies=60, density=0.3)
    assert min(Counter(r.user_id for r in ratings).values()) == 1
    return ratings


# --- the command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latest_n, seed", [(9, 0), (1, 0), (2, 5), (1000, 0)])
def test_latest_holds_out_each_users_last_ratings_at_most_half(kit, preprocess, ratings, latest_n, seed):
    splits = splits_of(kit.read_rows(preprocess(None, "--split", "latest", "--latest_n", latest_n, "--seed", seed,
                                              "--val_fraction", 0.02, ratings=ratings)))
    assert all(is_last(splits["test"] & set(pairs), pairs, latest_n) for pairs in by_user(ratings).values())
    num_givers, fraction = check_validation(ratings, splits, latest_n, val_fraction=0.02)
    assert num_givers > 0 and fraction < 0.5


def test_ties_of_a_day_are_broken_at_random(kit, preprocess):
    """What is certain to be last is taken first; of the day where the last ones begin, every rating is taken with the
    same probability, whatever its movie_idx."""
    ratings = [kit.Rating(movie_id, user_id, 3, "2005-01-01") for user_id in range(1, 401) for movie_id in range(1, 11)]
    ratings += [kit.Rating(11, user_id, 3, "2005-01-02") for user_id in range(1, 401)]
    ratings += [kit.Rating(12, user_id, 3, "2004-12-31") for user_id in range(1, 401)]
    splits = splits_of(kit.read_rows(preprocess(None, "--latest_n", 5, "--val_fraction", 0.99, ratings=ratings)))
    for split, num_certain, p in (("test", 400, 0.4), ("validation", 0, 0.3)):  # test takes 1 + 4, validation half of 7
        count = Counter(movie_id for _, movie_id in splits[split])
        assert count[11] == num_certain and count[12] == 0
        assert all(abs(count[movie_id] - 400 * p) < 5 * math.sqrt(400 * p * (1 - p)) for movie_id in range(1, 11))


@pytest.mark.parametrize("val_fraction", [0.01, 0.2, 0.49, 0.99])
def test_validation_takes_its_fraction_of_what_test_leaves_as_far_as_it_can(kit, preprocess, ratings, val_fraction):
    splits = splits_of(kit.read_rows(preprocess(None, "--val_fraction", val_fraction, ratings=ratings)))
    _, fraction = check_validation(ratings, splits, 9, val_fraction)
    assert (fraction == 1) == (val_fraction > 0.48)


def test_probe_never_reaches_training(kit, preprocess, ratings):
    """All pairs of probe.txt, and no others, are test; none of them is in train or validation."""
    probe = [(r.movie_id, r.user_id) for r in ratings[::11]]
    out_dir = preprocess(ratings=ratings, probe=probe)
    rows = kit.read_rows(out_dir)
    splits = splits_of(rows)
    assert splits["test"] == {(user_id, movie_id) for movie_id, user_id in probe}
    assert len(rows) == len(ratings)
    assert not splits["test"] & (splits["train"] | splits["validation"])
    trained = Counter(row.movie_id for row in rows if row.split == "train")
    movies = dataset.read_movies(out_dir)
    assert dict(zip(movies.movie_id.tolist(), movies.num_train_ratings.tolist(), strict=True)) == {
        movie_id: trained[movie_id] for movie_id in movies.movie_id.tolist()}
    num_givers, fraction = check_validation(ratings, splits, 9, val_fraction=0.05)
    assert num_givers > 0 and fraction < 0.5


def test_a_user_with_all_ratings_in_the_probe_is_kept(kit, preprocess, ratings):
    user_id = Counter(r.user_id for r in ratings).most_common(1)[0][0]
    probe = [(r.movie_id, r.user_id) for r in ratings if r.user_id == user_id]
    rows = kit.read_rows(preprocess(ratings=ratings, probe=probe))
    assert len(probe) > 20
    assert Counter(row.split for row in rows if row.user_id == user_id) == {"test": len(probe)}


def test_a_probe_of_every_rating_is_all_test(kit, preprocess):
    ratings = kit.draw_ratings(31, num_users=10)
    rows = kit.read_rows(preprocess(ratings=ratings, probe=[(r.movie_id, r.user_id) for r in ratings]))
    assert Counter(row.split for row in rows) == {"test": len(ratings)}


def test_probe_pairs_of_large_user_ids_are_found(kit, preprocess):
    ratings = [kit.Rating(movie_id, user_id, 3, "2005-01-01") for movie_id in (1, 2, 2**31 - 1)
               for user_id in (5, 2**31 + 5, 2**32 + 5, 99_999_999_999)]
    probe = [(2**31 - 1, 2**32 + 5), (1, 5), (2, 99_999_999_999)]
    splits = splits_of(kit.read_rows(preprocess(ratings=ratings, probe=probe)))
    assert splits["test"] == {(user_id, movie_id) for movie_id, user_id in probe}


def test_auto_is_the_probe_where_it_lies_and_else_latest(kit, preprocess, ratings):
    probe = [(r.movie_id, r.user_id) for r in ratings[::7]]
    for with_probe, named in ((probe, "probe"), (None, "latest")):
        auto = preprocess(ratings=ratings, probe=with_probe)
        assert kit.snapshot(auto) == kit.snapshot(preprocess(None, "--split", named, ratings=ratings, probe=with_probe))
        assert dataset.read_meta(auto)["split"]["method"] == named


def test_latest_and_random_leave_the_probe_unused(kit, preprocess, ratings):
    for split in ("latest", "random"):
        rows = [(preprocess(None, "--split", split, ratings=ratings, probe=probe) / "ratings.parquet").read_bytes()
                for probe in ([(ratings[0].movie_id, ratings[0].user_id)], None)]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("test_fraction, val_fraction", [(0.1, 0.05), (0.5, 0.5), (0.9, 0.2), (0.03, 0.9)])
def test_random_holds_out_its_fractions(kit, preprocess, ratings, test_fraction, val_fraction):
    rows = kit.read_rows(preprocess(None, "--split", "random", "--test_fraction", test_fraction, "--val_fraction",
                                    val_fraction, ratings=ratings))
    counts = Counter(row.split for row in rows)
    for count, trials, p in ((counts["test"], len(rows), test_fraction),
                             (counts["validation"], len(rows) - counts["test"], val_fraction)):
        assert abs(count - trials * p) < 5 * math.sqrt(trials * p * (1 - p))


@pytest.mark.parametrize("split", ["latest", "random", "probe"])
def test_the_seed_decides_all_random_choices(kit, preprocess, ratings, split):
    probe = [(r.movie_id, r.user_id) for r in ratings[::19]]
    first, second, other = (
        splits_of(kit.read_rows(preprocess(None, "--split", split, "--seed", seed, ratings=ratings, probe=probe)))
        for seed in (1, 1, 2))
    assert first == second
    assert first["validation"] != other["validation"]
    assert (first["test"] != other["test"]) == (split != "probe")  # latest: ties of a day


def test_the_largest_seed_works(kit, preprocess, ratings):
    assert dataset.read_meta(preprocess(None, "--seed", 2**63 - 1, ratings=ratings))["seed"] == 2**63 - 1


@pytest.mark.parametrize("split", ["latest", "random", "probe"])
def test_shuffling_test_stars_changes_no_statistic(kit, preprocess, ratings, split):
    """Permute the stars among the test ratings: movies.parquet and users.parquet keep every byte, train every star."""
    flags = ("--split", split, "--test_fraction", 0.3)
    probe = [(r.movie_id, r.user_id) for r in ratings[::5]]
    titles = kit.title_text(sorted({r.movie_id for r in ratings}))
    before = preprocess(None, *flags, ratings=ratings, probe=probe, titles=titles)
    test = splits_of(kit.read_rows(before))["test"]
    test_rows = [k for k, r in enumerate(ratings) if (r.user_id, r.movie_id) in test]
    stars = [ratings[k].stars for k in test_rows]
    shuffled = list(ratings)
    for k, star in zip(test_rows, stars[1:] + stars[:1], strict=True):
        shuffled[k] = kit.Rating(**{**vars(ratings[k]), "stars": star})
    assert sum(a != b for a, b in zip(ratings, shuffled, strict=True)) > len(test_rows) // 2 > 100
    after = preprocess(None, *flags, ratings=shuffled, probe=probe, titles=titles)
    for name in ("movies.parquet", "users.parquet"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    rows = [kit.read_rows(out_dir) for out_dir in (before, after)]
    assert [row for row in rows[0] if row.split != "test"] == [row for row in rows[1] if row.split != "test"]
    assert rows[0] != rows[1]


def test_the_counts_in_meta_are_those_of_the_splits(kit, preprocess, ratings):
    out_dir = preprocess(ratings=ratings)
    meta = json.loads((out_dir / "meta.json").read_text())
    counts = Counter(pq.read_table(out_dir / "ratings.parquet")["split"].to_pylist())
    assert {name: meta["split"][f"num_{name}"] for name in ("train", "validation", "test")} == counts
    assert sum(counts.values()) == len(ratings)


@pytest.mark.parametrize("times", [0, 2])
def test_the_program_notices_ratings_that_are_not_in_the_file_or_there_twice(write_raw, ratings, run, tmp_path,
                                                                             monkeypatch, times):
    write_ratings = writer.write_ratings
    monkeypatch.setattr(writer, "write_ratings", lambda *args: [write_ratings(*args) for _ in range(times)])
    result = run(write_raw(ratings=ratings), tmp_path / "space" / "out")
    assert result.code == 1 and "ratings.parquet" in result.err and not (tmp_path / "space").exists()


@pytest.mark.parametrize("source, target", [(TEST, TRAIN), (TRAIN, TEST), (VALIDATION, TEST)])
def test_a_rating_written_into_a_wrong_split_is_noticed_by_the_program(
        kit, write_raw, ratings, run, tmp_path, monkeypatch, source, target):
    """The check that train and test share no pair looks at the file that was written."""
    write_ratings = writer.write_ratings

    def write_wrongly(parquet, ratings):
        split = ratings.split.copy()
        split[np.flatnonzero(split == source)[0]] = target
        write_ratings(parquet, ratings._replace(split=split))

    raw_dir = write_raw(ratings=ratings)
    assert run(raw_dir, tmp_path / "space" / "right").code == 0
    monkeypatch.setattr(writer, "write_ratings", write_wrongly)
    try:
        code = run(raw_dir, tmp_path / "space" / "wrong").code
    except Exception as error:  # a fault of the program, not of the input: a traceback is in order
        code = type(error)
    assert code != 0
    assert [path.name for path in (tmp_path / "space").iterdir()] == ["right"]


# --- the functions ---------------------------------------------------------------------------------------------


def make_plan(method="latest", **changes):
    return SplitPlan(**{"method": method, "test_fraction": 0.1, "latest_n": 9, "val_fraction": 0.05, "seed": 0,
                        **changes})


def test_latest_count_is_at_most_half():
    counts = np.array([0, 1, 2, 3, 4, 17, 18, 19, 20, 17_653])
    assert latest_count(counts, 9).tolist() == [0, 0, 1, 1, 2, 8, 9, 9, 9, 9]
    assert latest_count(counts, 1).tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert latest_count(counts, 10**9).tolist() == [0, 0, 1, 1, 2, 8, 9, 9, 10, 8826]


def test_three_users_are_split_as_by_hand():
    user_idx = np.array([0, 1, 1, 1, 1, 1, 1, 1, 2, 2])
    movie_idx = np.array([5, 9, 8, 7, 6, 5, 4, 3, 1, 0])
    day = np.array([7, 0, 1, 2, 3, 4, 5, 6, 3, 9])
    plan = make_plan(latest_n=2, val_user_fraction=1.0)
    expected = [TRAIN] + [TRAIN] * 3 + [VALIDATION] * 2 + [TEST] * 2 + [TRAIN, TEST]
    assert split_users(plan, user_idx, movie_idx, day, NO_ROWS).tolist() == expected
    plan = make_plan("probe", latest_n=1, val_user_fraction=1.0)
    expected = [TEST, TRAIN, TRAIN, TEST, TRAIN, TRAIN, VALIDATION, TEST, TRAIN, VALIDATION]
    assert split_users(plan, user_idx, movie_idx, day, np.array([0, 3, 7])).tolist() == expected


def test_no_rating_is_split_into_nothing():
    for method in ("latest", "random", "probe"):
        assert split_users(make_plan(method), NO_ROWS, NO_ROWS, NO_ROWS, NO_ROWS).tolist() == []


@settings(max_examples=150, deadline=None)
@given(counts=st.lists(st.integers(1, 25), min_size=1, max_size=12), first_user=st.integers(0, 10**6),
       latest_n=st.integers(1, 12), seed=st.integers(0, 2**63 - 1),
       method=st.sampled_from(["latest", "random", "probe"]), data=st.data())
def test_a_block_of_users_is_split_as_user_by_user(counts, first_user, latest_n, seed, method, data):
    user_idx = np.repeat(np.arange(len(counts)) + first_user, counts)
    movie_idx = np.concatenate([np.arange(count)[::-1] for count in counts])
    day = np.concatenate([sorted(data.draw(st.lists(st.integers(0, count), min_size=count, max_size=count)))
                          for count in counts])
    given_rows = data.draw(st.sets(st.integers(0, len(user_idx) - 1))) if method == "probe" else ()
    rows = np.array(sorted(given_rows), np.int64)
    plan = make_plan(method, latest_n=latest_n, seed=seed, val_user_fraction=0.5, test_fraction=0.3, val_fraction=0.4)
    whole = split_users(plan, user_idx, movie_idx, day, rows)
    ends = np.cumsum(counts)
    alone = [split_users(plan, user_idx[start:end], movie_idx[start:end], day[start:end],
                         rows[(rows >= start) & (rows < end)] - start) for start, end in zip(ends - counts, ends)]
    assert whole.tolist() == np.concatenate(alone).tolist()
    for start, end in zip(ends - counts, ends):
        if method == "random":
            continue
        split, days = whole[start:end], dict(enumerate(day[start:end].tolist()))
        test = set(np.flatnonzero(split == TEST).tolist())
        assert is_last(test, days, latest_n) if method == "latest" else \
            test == {int(row) - start for row in rows if start <= row < end}
        validation = set(np.flatnonzero(split == VALIDATION).tolist())
        assert not validation or is_last(validation, {k: days[k] for k in days if k not in test}, latest_n)


@pytest.mark.parametrize("fractions", [(0.1, 0.05), (0.5, 0.1), (0.01, 0.5)])
def test_random_fractions_are_exact_on_a_million_ratings(fractions):
    user_idx, movie_idx = np.divmod(np.arange(1_000_000), 500)
    plan = make_plan("random", test_fraction=fractions[0], val_fraction=fractions[1])
    counts = np.bincount(split_users(plan, user_idx, movie_idx, user_idx, NO_ROWS), minlength=3)
    for count, trials, p in ((counts[TEST], 10**6, fractions[0]),
                             (counts[VALIDATION], 10**6 - counts[TEST], fractions[1])):
        assert abs(count - trials * p) < 5 * math.sqrt(trials * p * (1 - p))


def test_limit_validation_takes_as_many_users_as_the_fraction_of_ratings_needs():
    plan = make_plan(latest_n=2, val_fraction=0.1)
    num_ratings = np.array([1, 2, 10, 30])  # test takes 0, 1, 2, 2; 1, 1, 8, 28 remain, of which 0, 0, 2, 2 can go
    plan.limit_validation(num_ratings)
    assert plan.val_user_fraction == pytest.approx(0.1 * 38 / 4, rel=1e-12)
    plan.limit_validation(num_ratings, np.array([1, 2, 10, 0]))
    assert plan.val_user_fraction == 1.0
