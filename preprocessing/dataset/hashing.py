"""Random numbers as hashes of ids: they depend on the seed and the ids alone, not on the order of the rows."""

import numpy as np


def hash_ids(seed: int, *columns: np.ndarray) -> np.ndarray:
    """Hash the ids of each row to 64 bits with the finaliser of SplitMix64 (Steele et al. 2014).

    Args:
        seed: from 0 to 2^64 - 1.
        columns: one or more, integers (R,).

    Returns:
        uint64 (R,).
    """
    word = np.full(len(columns[0]), seed, np.uint64)
    for column in columns:
        word ^= column.astype(np.uint64)
        word += np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            word ^= word >> np.uint64(shift)
            word *= np.uint64(factor)
        word ^= word >> np.uint64(31)
    return word


def uniform(seed: int, *columns: np.ndarray) -> np.ndarray:
    """Hash the ids of each row to a number in [0, 1), float64 (R,): the upper 53 bits of `hash_ids`."""
    return (hash_ids(seed, *columns) >> np.uint64(11)) * 2.0**-53
