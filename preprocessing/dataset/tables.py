"""Tables of human size as people have them: any separator, encoding and order of columns, read by their header's names.

A catalogue, somebody's own ratings, an export of another program: pandas reads them as text, and what a value means is
decided by who asks. (Rating files of millions of lines have a reader of their own, which finds out by `layout_of`, from
the first lines alone, how they are written.)
"""

import codecs
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from preprocessing.dataset.records import DataError

if TYPE_CHECKING:
    import pandas as pd

# Names of the columns of ids in tables of any kind of ratings, as `plain_name` writes them, the best first.
USER_NAMES = ("userid", "user", "reader", "readerid", "student", "studentid", "member", "memberid", "customer",
              "customerid", "reviewer", "reviewerid", "person", "personid", "profileid", "profilename", "uid",
              "userkey", "usernumber", "email", "emailaddress", "mail", "username", "learner", "learnerid",
              "participant", "participantid", "listener", "player", "guest", "buyer", "client", "clientid", "visitor",
              "visitorid", "account", "accountid", "patron", "patronid", "name")
ITEM_ID_NAMES = ("itemid", "movieid", "filmid", "bookid", "productid", "courseid", "songid", "trackid", "gameid",
                 "recipeid", "titleid", "asin", "parentasin", "isbn", "isbn13", "isbn10", "ean", "sku", "itemkey",
                 "mid", "businessid", "animeid", "jokeid")
ITEM_NAMES = ("item", "book", "movie", "film", "product", "course", "song", "track", "album", "artist", "game",
              "recipe", "restaurant", "business", "beer", "wine", "anime", "show", "joke", "place", "hotel", "lecture",
              "podcast", "episode", "article", "paper", "module", "class", "subject")
TITLE_NAMES = ("title", "booktitle", "movietitle", "filmtitle", "itemtitle", "itemname", "productname", "producttitle",
               "coursename", "coursetitle", "songtitle", "trackname", "gamename", "recipename")
SEPARATORS = ("::", "\t", ";", ",", "|")  # of equally good ones the first is taken
ALWAYS_QUOTED = (";", ",")  # beside "|" and tabs a quotation mark may be a character like others, beside "::" it is one
HEAD = 1 << 16  # characters from which the layout is found
FIRST_ROWS = 50
STAND_INS = "\t\x1f\x1e\x1d"  # for the separator "::", as parsers want a single character
NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?")
# The end of a column's name that says its scale: "rating (of 10)", "score 1-5", "stars/10".
COUNTS_TO = re.compile(r"[\s_(/]*(?:(?:out[\s_]*)?of|[01][\s_]*(?:-|–|to)|/)?[\s_]*(?<!\d)(5|10)\s*\)?$", re.IGNORECASE)
Names = dict[str, tuple[str, ...]]  # for each column the names that a header may have for it, see `plain_name`
# What a byte that is no UTF-8 stands for: Windows' cp1252, and latin-1 for the five bytes that it does not define.
_WINDOWS = {0xDC00 + byte: bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in range(128, 256)}


class TableFile(Protocol):
    """Where a table is read from: a Path, or anything else with bytes and a name that sentences call it by."""

    def read_bytes(self) -> bytes:
        """Return all that is in it."""
        ...


@dataclass
class Layout:
    """How a table is written."""

    separator: str
    is_quoted: bool  # whether a field may stand in quotation marks
    header: list[str] | None  # None where the first line is data
    first: list[str]  # fields of the first row that is not empty
    first_line: int  # its line, from 1
    rows: list[list[str]]  # some more rows


@dataclass
class Table:
    """Columns of text of a file, by the names that they were asked for."""

    frame: "pd.DataFrame"  # of str; a missing cell is ""; the index is the line, from 1
    named: dict[str, str]  # what the header calls each column; empty without a header


def read_table(path: TableFile, columns: Names, needed: tuple[str, ...],
               without_header: Callable[["pd.DataFrame"], tuple[str, ...]]) -> Table:
    """Read a table's columns of certain names; pass over the others.

    Args:
        columns: the names of each column, the best first.
        needed: columns that a header must name.
        without_header: tells what the columns of a file without header are, from its cells.

    Raises:
        DataError: with the line: a quotation mark that is never closed, a row of more fields than the first, a header
            without a needed column (its names are listed).
        OSError: the file cannot be read.
    """
    import pandas as pd  # half a second, so only where a table is read

    text = decode(path.read_bytes()).replace("\0", "").replace("\r", "\n")
    text = re.sub(r"(?m)^[ \t]+$", "", text)
    if not text.strip():
        return Table(pd.DataFrame(columns=list(needed), dtype=str), {})
    layout = layout_of(text[:HEAD], columns)
    text = _without_marked_separator(text)
    plain, mark = _one_mark(text, layout.separator)
    lines, width = [], 1
    try:
        for line, fields in _rows(text, layout.separator, layout.is_quoted):
            lines.append(line)
            width = max(width, len(fields))
        frame = pd.read_csv(io.StringIO(plain), header=None, names=range(width), index_col=False, sep=mark, dtype=str,
                            keep_default_na=False, skip_blank_lines=False, skipinitialspace=True,
                            quoting=csv.QUOTE_MINIMAL if layout.is_quoted else csv.QUOTE_NONE)
    except (pd.errors.ParserError, csv.Error) as error:
        found = re.search(r"inside string starting at row (\d+)", str(error))
        line, reason = (lines[int(found[1])], "a quotation mark is never closed") if found else (
            lines[-1] + 1 if lines else 1, str(error).splitlines()[0])
        raise DataError(f"{path}, line {line}: {reason}") from None
    frame = frame.fillna("").apply(lambda column: column.str.strip())
    frame.index = pd.Index(lines)
    frame = frame[(frame != "").any(axis=1)]
    num_fields = len(layout.first)
    overlong = frame[(frame[frame.columns[num_fields:]] != "").any(axis=1)]
    if len(overlong):
        row = layout.separator.join(overlong.iloc[0]).rstrip(layout.separator)
        raise DataError(f"{path}, line {overlong.index[0]}: {row[:60]!r} has more fields than the {num_fields} of the "
                        "first line (a title that holds a separator stands in double quotes)")
    if layout.header is None:
        names = without_header(frame)
        return Table(frame[list(range(min(len(names), width)))].set_axis(list(names[:width]), axis=1), {})
    positions = named_positions(path, columns, needed, layout)
    named = {column: layout.header[position] for column, position in positions.items()}
    return Table(frame.iloc[1:][list(positions.values())].set_axis(list(positions), axis=1), named)


def decode(data: bytes) -> str:
    """Return the text of a file; lines end in "\\n", also where "\\r" ends them all.

    It is UTF-16 or UTF-8, with or without byte order mark, or Windows' cp1252, or UTF-8 with a few of its bytes.
    """
    encoding = encoding_of(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            text = data.decode(encoding, errors="replace")
        else:
            text = data.decode(encoding, errors="surrogateescape")
            num_foreign = sum("\udc80" <= letter <= "\udcff" for letter in text)
            if 2 * num_foreign >= sum(letter > "\x7f" for letter in text):  # few of them UTF-8, so that is chance
                text = data.decode("ascii", errors="surrogateescape")
            text = text.translate(_WINDOWS)
    text = text.replace("\r\n", "\n")
    return text if "\n" in text else text.replace("\r", "\n")


def encoding_of(data: bytes) -> str:
    """Return the encoding of a file by its first bytes; "utf-8-sig" stands for all whose digits are those of ASCII."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    head = data[:200]
    if head.count(0) > len(head) / 4:  # UTF-16 without its mark: of plain letters every second byte is zero
        return "utf-16-be" if head[::2].count(0) > head[1::2].count(0) else "utf-16-le"
    return "utf-8-sig"


def layout_of(head: str, columns: Names) -> Layout:
    """Find out from a table's first lines how it is written.

    The separator is the one by which the first row makes most sense (names that are known, or numbers), of these the
    one that divides most rows alike. A first row without a number is a header.
    """
    marked = re.match(r"\s*sep=(::|.)\n", head, re.IGNORECASE)  # as Excel writes it
    text, best, best_score = _without_marked_separator(head), None, (-1.0, -1.0)
    for separator in (marked[1],) if marked else SEPARATORS:
        is_quoted = separator in ALWAYS_QUOTED or (separator != "::" and _is_well_quoted(text, separator))
        rows = []
        for line, fields in _rows(text, separator, is_quoted):
            if any(field.strip() for field in fields):
                rows.append((line, [field.strip() for field in fields]))
            if len(rows) > FIRST_ROWS:
                break
        if not rows:
            continue
        first_line, first = rows[0]
        sizes = Counter(len(fields) for _, fields in rows if len(fields) > 1)
        has_header = not any(map(is_number, first)) and any(first)
        sense = len(header_positions(columns, first)) if has_header else sum(map(is_number, first))
        score = (float(sense) if sizes else 0.0, max(sizes.values(), default=0) / len(rows))
        if score > best_score:
            best_score = score
            best = Layout(separator, is_quoted, first if has_header else None, first, first_line,
                          [fields for _, fields in rows[1:]])
    if best is None:
        return Layout(",", True, None, [""], 1, [])
    if not best_score[1]:  # a single column, or columns of numbers with spaces between
        return _spaced(text, columns) or Layout(",", True, best.header, best.first, best.first_line, best.rows)
    return best


def _spaced(text: str, columns: Names) -> Layout | None:
    """Return the layout of a table that is separated by spaces, as u.data saved so: at least three columns, of which
    the header names three, or whose first three are numbers in every row. Nothing else is taken for one."""
    rows = [(line, fields) for line, fields in itertools.islice(_rows(text, " ", False), FIRST_ROWS) if fields]
    if not rows or len({len(fields) for _, fields in rows}) > 1 or len(rows[0][1]) < 3:
        return None
    first_line, first = rows[0]
    has_header = len(header_positions(columns, first)) >= 3
    if not has_header and not all(is_number(field) for _, fields in rows for field in fields[:3]):
        return None
    return Layout(" ", False, first if has_header else None, first, first_line, [fields for _, fields in rows[1:]])


def named_positions(path: TableFile, columns: Names, needed: tuple[str, ...], layout: Layout) -> dict[str, int]:
    """Return where a header has the columns; see `header_positions`.

    Raises:
        DataError: a needed column is not there, or a name stands twice.
    """
    header = layout.header or []
    positions, plain = header_positions(columns, header), [plain_name(name) for name in header]
    where = f"{path}, line {layout.first_line}" if layout.first_line else str(path)  # no line: it is no text
    found = ", ".join(repr(name[:40]) for name in header if name)
    if missing := [column for column in needed if column not in positions]:
        expected = "; ".join(f"{column} ({' or '.join(columns[column][:3])})" for column in missing)
        raise DataError(f"{where}: no column is named for {expected}; found: {found}")
    for position in positions.values():
        if (number := plain.count(plain[position])) > 1:
            raise DataError(f"{where}: {number} columns are called {header[position]!r}; keep one")
    return positions


def header_positions(columns: Names, header: list[str]) -> dict[str, int]:
    """Return where a header has the columns: of several names the best, and each place once."""
    plain = [plain_name(name) for name in header]
    found: dict[str, int] = {}
    for column, names in columns.items():
        for name in names:
            if name in plain and plain.index(name) not in found.values():
                found[column] = plain.index(name)
                break
    return found


def plain_name(name: str) -> str:
    """Return a column's name as names are compared: small letters and digits, without the end of its scale, if any."""
    return "".join(letter for letter in COUNTS_TO.sub("", name).casefold() if letter.isalnum())


def is_number(text: str) -> bool:
    """Tell whether a cell is a number, with a decimal point or comma."""
    return NUMBER.fullmatch(text) is not None


def number_of(text: str) -> float:
    """Return a number as people write it, with a decimal point or comma.

    Raises:
        ValueError: it is none.
    """
    return float(text.replace(",", ".") if is_number(text) else text)


def split_line(line: str, separator: str, is_quoted: bool) -> list[str]:
    """Return the fields of a line."""
    return [field.strip() for field in next((fields for _, fields in _rows(line, separator, is_quoted)), [""])]


def _rows(text: str, separator: str, is_quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield each row's line, from 1, and its fields."""
    plain, mark = _one_mark(text, separator)
    reader = csv.reader(io.StringIO(plain.replace("\r", "\n")), delimiter=mark, skipinitialspace=True,
                        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE)
    line = 1
    for fields in reader:
        yield line, fields
        line = reader.line_num + 1


def _one_mark(text: str, separator: str) -> tuple[str, str]:
    """Return a text whose separator is a single character, and that character; of several spaces a reader makes one."""
    if separator == " ":
        return re.sub(r"(?m)^ +| +$", "", text), separator
    if len(separator) == 1:
        return text, separator
    mark = next((mark for mark in STAND_INS if mark not in text), STAND_INS[0])
    return text.replace(separator, mark), mark


def _is_well_quoted(text: str, separator: str) -> bool:
    """Tell whether all quotation marks enclose whole fields, as no title in quotes does by chance."""
    mark = re.escape(separator)
    return '"' not in re.sub(rf'(?:(?<=^)|(?<={mark})|(?<=\n))"(?:[^"]|"")*"(?=\n|{mark}|\Z)', "", text)


def _without_marked_separator(text: str) -> str:
    """Return a text whose first line is empty if it only names the separator."""
    return re.sub(r"\A\s*sep=(?:::|.)\n", "\n", text, flags=re.IGNORECASE)
