"""Tables of human size as people have them: any separator, encoding and order of columns, read by their header's names.

A catalogue, somebody's own ratings, an export of another program: pandas reads them as text, and what a value means is
decided by who asks. (Rating files of millions of lines have readers of their own, which use `decode` and `sniff`.)
"""

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.dataset.records import DataError

if TYPE_CHECKING:
    import pandas as pd

SEPARATORS = ("::", "\t", ";", ",", "|")  # of equal ones the first is taken
FIRST_LINES = 50  # that the separator is found by
PLAIN_TEXT = ("::", "|")  # separators beside which a quotation mark is a character like others


@dataclass
class Table:
    """Columns of text of a file, by the names that they were asked for."""

    frame: "pd.DataFrame"  # of str; a missing cell is ""; the index is the line, from 1
    named: dict[str, str]  # what the header calls each column; empty without a header
    separator: str


def read_table(path: Path, columns: dict[str, tuple[str, ...]], without_header: tuple[str, ...],
               is_data: Callable[[list[str]], bool]) -> Table:
    """Read a table's columns of certain names; pass over the others.

    Args:
        columns: for each column the names that a header may have for it, the best first, in the form of `plain_name`.
        without_header: the columns of a file that has no header, in order.
        is_data: tells of the first line's fields whether they are data, so that there is no header.

    Raises:
        DataError: a quotation mark that is never closed, or no column of any of the names (they are listed).
        OSError: the file cannot be read.
    """
    import pandas as pd  # half a second, so only where a table is read

    text = decode(path.read_bytes())
    separator = sniff(text)
    quoting = csv.QUOTE_NONE if separator in PLAIN_TEXT else csv.QUOTE_MINIMAL
    width = max((len(split_line(line, separator)) for line in text.splitlines()), default=1)
    try:
        frame = pd.read_csv(io.StringIO(text.replace(separator, "\t") if separator == "::" else text), header=None,
                            names=range(width), index_col=False, sep="\t" if separator == "::" else separator,
                            dtype=str, keep_default_na=False, skip_blank_lines=False, skipinitialspace=True,
                            quoting=quoting, on_bad_lines="error")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        found = re.search(r"row (\d+)", str(error))
        where = f", line {int(found[1]) + 1}" if found else ""
        reason = "a quotation mark is never closed" if found else str(error).splitlines()[0]
        raise DataError(f"{path}{where}: {reason}") from None
    frame = frame.fillna("").map(str.strip)
    frame.index = frame.index + 1
    frame = frame[(frame != "").any(axis=1)]
    if frame.empty or is_data(_trimmed(frame.iloc[0].tolist())):
        named: dict[str, str] = {}
        positions = {name: position for position, name in enumerate(without_header) if position < width}
    else:
        header = frame.iloc[0].tolist()
        positions = header_positions(columns, header)
        if not positions:
            raise DataError(f"{path}: the columns {', '.join(repr(name) for name in header if name)} have none of the "
                            f"names {', '.join(names[0] for names in columns.values())}")
        named = {name: header[position] for name, position in positions.items()}
        frame = frame.iloc[1:]
    return Table(frame[list(positions.values())].set_axis(list(positions), axis=1), named, separator)


def decode(data: bytes) -> str:
    """Return the text of a file: UTF-8 with or without byte order mark, UTF-16, Windows' cp1252, else latin-1; every
    line ends in "\\n"."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-16", errors="replace")
    elif b"\0" in data[:200]:  # UTF-16 without a mark: every second byte of plain letters is zero
        text = data.decode("utf-16-be" if data[:1] == b"\0" else "utf-16-le", errors="replace")
    else:
        for encoding in ("utf-8-sig", "cp1252", "latin-1"):  # the last one has every byte
            try:
                text = data.decode(encoding)
                break
            except UnicodeDecodeError:
                continue
    return text.replace("\r\n", "\n").replace("\r", "\n")


def sniff(text: str) -> str:
    """Return the separator that divides the first lines most evenly, "," if none does."""
    lines = [line for line in text.split("\n", FIRST_LINES)[:FIRST_LINES] if line.strip()]

    def evenness(separator: str) -> float:
        counts = Counter(len(split_line(line, separator)) for line in lines)
        counts.pop(1, None)
        return max(counts.values(), default=0) / max(len(lines), 1)

    best = max(SEPARATORS, key=evenness)
    return best if evenness(best) else ","


def plain_name(name: str) -> str:
    """Return a column's name as names are compared: small letters and digits alone."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def number_of(text: str) -> float:
    """Return a number as people write it, with a decimal point or comma.

    Raises:
        ValueError: it is none.
    """
    return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)


def header_positions(columns: dict[str, tuple[str, ...]], header: list[str]) -> dict[str, int]:
    """Return where the columns are; of several names the best, and each place once."""
    plain, found = [plain_name(name) for name in header], {}
    for column, names in columns.items():
        position = next((plain.index(name) for name in names if name in plain), None)
        if position is not None and position not in found.values():
            found[column] = position
    return found


def split_line(line: str, separator: str) -> list[str]:
    """Return the fields of a line."""
    if separator in PLAIN_TEXT:
        return line.split(separator)
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [""])


def _trimmed(fields: list[str]) -> list[str]:
    """Return fields without the empty ones at the end."""
    while fields and not fields[-1]:
        fields = fields[:-1]
    return fields
