import math

import numpy as np

from preprocessing.dataset import hash_ids, uniform

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]


def test_ids_are_hashed_as_splitmix64_is_published():
    """The first numbers that the authors' own program prints for the seed 1234567."""
    seeds = [(1234567 + k * GOLDEN_GAMMA) % 2**64 for k in range(4)]
    assert [int(hash_ids(seed, np.zeros(1, np.int64))[0]) for seed in seeds] == PUBLISHED
    assert hash_ids(1234567, np.array([0, 5], np.int16)).dtype == np.uint64


def test_each_column_is_hashed_into_the_hash_of_those_before_it():
    first, second = np.array([7, 0, 2**40]), np.array([3, 0, 5])
    chained = [int(hash_ids(int(word), second[k:k + 1])[0]) for k, word in enumerate(hash_ids(9, first))]
    assert hash_ids(9, first, second).tolist() == chained


def test_uniform_is_the_upper_53_bits_of_the_hash():
    ids = np.arange(1000)
    assert uniform(4, ids, ids).tolist() == [(word >> 11) / 2**53 for word in hash_ids(4, ids, ids).tolist()]


def test_no_rows_are_hashed_to_nothing():
    nothing = np.zeros(0, np.int64)
    assert hash_ids(0, nothing).tolist() == uniform(0, nothing, nothing).tolist() == []


def test_uniform_numbers_are_uniform_and_depend_on_seed_and_every_column():
    user_idx, movie_idx = np.divmod(np.arange(200_000, dtype=np.int32), 400)
    draws = [uniform(0, user_idx, movie_idx), uniform(1, user_idx, movie_idx), uniform(0, movie_idx, user_idx),
             uniform(0, np.arange(200_000))]
    for number, draw in enumerate(draws):
        assert draw.dtype == np.float64 and draw.min() >= 0 and draw.max() < 1
        assert len(np.unique(draw)) == len(draw)
        counts = np.bincount((draw * 64).astype(int), minlength=64)
        assert np.abs(counts - 3125).max() < 5 * math.sqrt(3125 * 63 / 64)
        for other in draws[:number]:
            assert abs(np.corrcoef(draw, other)[0, 1]) < 5 / math.sqrt(len(draw))


def test_uniform_numbers_do_not_depend_on_the_dtype_or_the_neighbours():
    values = np.array([0, 1, 2, 17_769])
    whole = uniform(3, values, values[::-1])
    for dtype in (np.int16, np.int32, np.int64):
        assert uniform(3, values.astype(dtype), values[::-1].astype(dtype)).tolist() == whole.tolist()
    assert [uniform(3, values[k:k + 1], values[::-1][k:k + 1])[0] for k in range(4)] == whole.tolist()
