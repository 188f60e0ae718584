"""Ids as raw tables have them: whole numbers where every one is, else the text as it is written."""

import re
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.dataset.schema import MOST_ID_LETTERS

Ids: TypeAlias = np.ndarray | pa.ChunkedArray  # int64 (R,), or text (R,)
PLAIN = r"^(0|[1-9][0-9]{0,18})(\.0*)?$"  # without leading zeros; as 7.0, a spreadsheet's 7
TABLE_LIMIT = 1 << 26  # ids up to here are ranked through a table, larger ones by a sort
UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # what may steer a terminal or end a line


def ids_of(column: pa.ChunkedArray, limit: int) -> Ids:
    """Return a column of ids as whole numbers, int64 (R,), if all are written plainly and lie below a limit; as text
    (R,), without spaces around it, else.

    Args:
        column: of any type, without nulls.
    """
    if pa.types.is_floating(column.type) and pc.all(pc.and_(pc.equal(column, pc.floor(column)),
                                                            pc.less(pc.abs(column), 2.0**53))).as_py():
        column = pc.cast(column, pa.int64())
    if pa.types.is_integer(column.type):
        numbers = _below(column, limit)
        return pc.cast(column, pa.string()) if numbers is None else numbers
    column = pc.cast(column, pa.string())
    has_zero = pc.and_(pc.starts_with(column, "0"), pc.greater(pc.binary_length(column), 1))
    if not pc.any(pc.or_(has_zero, pc.starts_with(column, "-"))).as_py():
        numbers = _below(column, limit)
        if numbers is not None:
            return numbers
    column = pc.utf8_trim_whitespace(column)
    if pc.all(pc.match_substring_regex(column, PLAIN)).as_py():
        numbers = _below(pc.replace_substring_regex(column, r"\.0*$", ""), limit)
        if numbers is not None:
            return numbers
    return column


def _below(column: pa.ChunkedArray, limit: int) -> np.ndarray | None:
    """Return numbers from 0, int64; None if one is none, or not below a limit."""
    try:
        numbers = np.asarray(pc.cast(column, pa.int64()))
    except pa.ArrowInvalid:
        return None
    return numbers if not len(numbers) or (numbers.min() >= 0 and numbers.max() < limit) else None


def as_text(ids: Ids) -> pa.ChunkedArray:
    """Return ids as text (R,)."""
    return pa.chunked_array([pa.array(ids).cast(pa.string())]) if isinstance(ids, np.ndarray) else ids


def unfit_ids(ids: Ids) -> np.ndarray:
    """Return which ids are none, bool (R,): empty, overlong, or with characters that no list can show."""
    if isinstance(ids, np.ndarray):
        return np.zeros(len(ids), bool)
    unfit = [text for text in pc.unique(ids).to_pylist()
             if not text or len(text) > MOST_ID_LETTERS or UNFIT.search(text)]
    return np.asarray(pc.is_in(ids, pa.array(unfit, pa.string())))


def number_ids(ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Number the ids of ratings: numbers, int64 (R,), or text (R,).

    Returns:
        The distinct ids in order, int64 or str (N,); the rank of each rating's id among them, int64 (R,).
    """
    if isinstance(ids, pa.ChunkedArray):
        distinct = sorted(pc.unique(ids).to_pylist())  # by code point
        return np.array(distinct, str), np.asarray(pc.index_in(ids, pa.array(distinct, ids.type))).astype(np.int64)
    if not len(ids) or ids.max() >= TABLE_LIMIT:
        return np.unique(ids, return_inverse=True)
    occurs = np.zeros(int(ids.max()) + 1, bool)
    occurs[ids] = True
    return np.flatnonzero(occurs), (np.cumsum(occurs) - 1)[ids]


def first_rows(ranks: np.ndarray, num_ids: int) -> np.ndarray:
    """Return the first row of each id, int64 (N,), from the ranks that `number_ids` gives to rows, int64 (R,)."""
    first = np.zeros(num_ids, np.int64)
    first[ranks[::-1]] = np.arange(len(ranks))[::-1]  # of several rows, the last one written stays
    return first
