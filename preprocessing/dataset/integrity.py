"""Notice damage to a data set, and keep a file from a stranger from doing harm.

Parquet pages carry checksums, meta.json holds digests of the footers, and what a damaged page header could change is
checked against the users and movies. A file from a stranger cannot run code, and its counts are checked before memory
is taken for them.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.dataset.records import SPLITS, DataError
from preprocessing.dataset.schema import CODEC, PREPROCESS

MOST_META_BYTES = 1 << 24  # a reader takes memory for no more than these
MOST_GROUP_ROWS = 1 << 24
MOST_ROWS_PER_BYTE = 1000  # of a parquet file; real ones have less than one
META_TYPES: dict[str, type | tuple[type, ...]] = {
    "num_ratings": int, "num_users": int, "num_movies": int, "seed": int, "stars_step": (int, float),
    "stars_range": list, "split": dict, "footers": dict, "day_epoch": str, "fingerprint": str}


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn whatever a missing or damaged file makes the reader raise into one sentence that names it."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path} not found; run: {PREPROCESS} --out_dir {path.parent}") from None
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError, MemoryError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is damaged ({reason}); run: {PREPROCESS} --out_dir {path.parent}") from None


def demand(condition: bool, otherwise: str) -> None:
    """Raise ValueError unless a file is as it must be; `damage_named` turns it into a sentence."""
    if not condition:
        raise ValueError(otherwise)


def footer_digest(path: Path) -> str:
    """Return the SHA-256 of a parquet file's length and footer, which says where its pages are and what they mean."""
    with open(path, "rb") as file:
        file_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(file_bytes - 8, 0))
        footer_bytes = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(file_bytes - footer_bytes, 0))
        return hashlib.sha256(file_bytes.to_bytes(8, "little") + file.read()).hexdigest()


def meta_digest(meta: dict) -> str:
    """Return the SHA-256 of all entries of meta.json but the digest itself."""
    return hashlib.sha256(json.dumps({key: meta[key] for key in meta if key != "digest"}).encode()).hexdigest()


def is_sound(meta: dict) -> bool:
    """Tell whether the entries that the program relies on are there and have possible values."""
    if not all(isinstance(meta.get(name), kind) for name, kind in META_TYPES.items()):
        return False
    split_counts = [meta["split"].get(f"num_{name}") for name in SPLITS]
    counts = [meta["num_ratings"], meta["num_users"], meta["num_movies"], *split_counts]
    if not all(type(count) is int and 0 <= count < 2**48 for count in counts):
        return False
    if sum(split_counts) != meta["num_ratings"]:
        return False
    numbers = [meta["stars_step"], *meta["stars_range"]]
    return (len(numbers) == 3 and all(type(number) in (int, float) and abs(number) < 2**15 for number in numbers)
            and meta["stars_step"] > 0 and meta["stars_range"][0] < meta["stars_range"][1] and meta["seed"] >= 0
            and re.fullmatch("[0-9a-f]{64}", meta["fingerprint"]) is not None)


def check_codec(file: pq.ParquetFile, group: int) -> None:
    """Raise ValueError unless a row group is compressed as it is written: other codecs can pack gigabytes in a few
    bytes."""
    metadata = file.metadata.row_group(group)
    codecs = {metadata.column(column).compression for column in range(metadata.num_columns)}
    demand(codecs <= {CODEC.upper()}, f"compressed by {', '.join(sorted(codecs))}")
