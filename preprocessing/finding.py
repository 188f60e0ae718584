"""Find the raw files of the Netflix Prize in a folder or an archive, however they are wrapped."""

import contextlib
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

from preprocessing.dataset import DataError
from preprocessing.raw_files import (
    BLOCK_BYTES,
    BYTE_ORDER_MARK,
    OPENERS,
    Member,
    RawFile,
    archive_errors,
    disk_file,
    open_file,
    open_files,
    size_of,
    suffix_of,
    unwrapped_name,
    walk,
)

CHECKED_BYTES = 1 << 20  # of files that are compared, read at once
MAX_DEPTH = 2  # of folders in the raw folder, as in download/training_set/mv_0000001.txt

_ARCHIVES = (".tar", ".zip")
_KINDS = {  # of which files are which: of each kind, those of the first pattern that fits any
    "ratings": (r"combined_data_.*\.txt", r"mv_\d+\.txt"),
    "titles": (r"movie_titles\.csv", r"movie_titles\.txt"),
    "probe": (r"probe\.txt",),
}


def find_files(raw_dir: Path, split: str) -> tuple[list[RawFile], RawFile, RawFile | None]:
    """Find the rating files, the title file, and the probe if it is used, in a folder or an archive.

    What lies there unpacked is taken. Archives are opened where ratings or titles are missing; titles and probe may lie
    beside an archive or a folder of ratings that --raw_dir names. Files come in the order of their first movie header,
    members of archives in the order in which they stand there.

    Raises:
        DataError: the folder or a file that is needed is not there; an archive is damaged, or two differ in a file.
    """
    if not raw_dir.exists():
        raise DataError(f"{raw_dir} is no folder; put the raw files there, or make some: "
                        f"python preprocessing/synthetic_netflix.py --out_dir {raw_dir}")
    loose, archives = _list_folder(raw_dir)
    if not raw_dir.is_dir() and not loose and not archives:
        raise DataError(f"{raw_dir} is no folder and no archive (.zip, .tar, .tar.gz) of raw files")
    found = _choose(loose)
    needed = ["ratings", "titles", *["probe"] * (split == "probe")]
    if not all(kind in found for kind in needed):
        held: list[tuple[int, RawFile]] = [(0, file) for archive in archives for file in _list_archive(archive)]
        found = _choose(held) | found
    elif archives:
        print(f"{archives[0]} is not read: ratings and titles lie unpacked beside it")
    if "ratings" in found and "titles" not in found:  # training_set, or training_set.tar, alone
        found = _choose([(0, path) for path in sorted(raw_dir.resolve().parent.iterdir())], ("titles", "probe")) | found
    if "ratings" not in found:
        raise DataError(f"{raw_dir} holds no combined_data_*.txt; name the folder or the archive that does (or one "
                        "with training_set) with --raw_dir")
    inside = f"{raw_dir}/" if raw_dir.is_dir() else f"{raw_dir}:"
    if "titles" not in found:
        raise DataError(f"{inside}movie_titles.csv not found; it comes with the rating files")
    if split == "probe" and "probe" not in found:
        raise DataError(f"{inside}probe.txt not found; put it there, or choose --split latest")
    rating_files = found["ratings"]
    if not any(isinstance(file, Member) and file.names for file in rating_files):
        rating_files = sorted(rating_files, key=_first_movie)
    use_probe = split in ("auto", "probe") and "probe" in found
    return rating_files, found["titles"][0], found["probe"][0] if use_probe else None


def _list_folder(raw_dir: Path) -> tuple[list[tuple[int, RawFile]], list[Path]]:
    """Return the raw files that lie in a folder, each with the number of folders between, and the archives; of a file,
    itself. Inner folders are looked into while ratings or titles are missing."""
    loose: list[tuple[int, RawFile]] = []
    archives: list[Path] = []
    level = sorted(raw_dir.iterdir()) if raw_dir.is_dir() else [raw_dir]
    for depth in range(MAX_DEPTH + 1):
        folders = []
        for path in level:
            if _kind(path.name):
                is_compressed = suffix_of(path.name)[1] in OPENERS
                loose.append((depth, _list_archive(path)[0] if is_compressed else path))
            elif path.is_dir():
                folders.append(path)
            elif unwrapped_name(path.name).endswith(_ARCHIVES) and not path.name.startswith("."):
                archives.append(path)
        if {"ratings", "titles"} <= _choose(loose).keys():
            break
        level = [path for folder in folders if not folder.name.startswith(".") for path in sorted(folder.iterdir())]
    return loose, archives


def _list_archive(path: Path) -> list[Member]:
    """Return the raw files in an archive, in order; titles and probe with their content, so that they need no second
    pass over what stands before them."""
    members = []
    with (archive_errors(path), open(path, "rb") as opened,
          tqdm.wrapattr(opened, "read", total=path.stat().st_size, desc=f"list {path.name}", delay=1, leave=False,
                        disable=None) as file,
          contextlib.closing(walk(file, path.name)) as files):
        for names, size, stream in files:
            kind = _kind(names[-1] if names else path.name)
            data = stream.read() if kind and kind[0] != "ratings" else None
            if data is not None:
                size = len(data)
            elif kind and size is None:  # it is known only at the end of what is compressed
                size = _count(stream)
            if kind:
                members.append(Member(path, names, size or 0, data))
    return members


def _count(stream: IO[bytes]) -> int:
    """Return how many bytes a stream has."""
    num_bytes = 0
    while block := stream.read(BLOCK_BYTES):
        num_bytes += len(block)
    return num_bytes


def _choose(files: list[tuple[int, RawFile]], kinds: Iterable[str] = _KINDS) -> dict[str, list[RawFile]]:
    """Return the files of each kind that are nearest, each name once: a plain file before a compressed one.

    Raises:
        DataError: two folders or archives hold different files of one name, or one archive two.
    """
    by_kind: dict[str, dict[tuple[int, int], list[RawFile]]] = {}
    for depth, file in files:
        if (kind := _kind(file.name)) and kind[0] in kinds:
            by_kind.setdefault(kind[0], {}).setdefault((depth, kind[1]), []).append(file)
    chosen: dict[str, list[RawFile]] = {}
    alike: list[tuple[RawFile, RawFile]] = []  # of one name and size
    for name, places in by_kind.items():
        by_name: dict[str, RawFile] = {}
        for file in places[min(places)]:
            own_name = unwrapped_name(file.name)
            first = by_name.setdefault(own_name, file)
            if type(first) is not type(file):
                by_name[own_name] = first if isinstance(first, Path) else file
            elif first.name != file.name:  # by capital letters alone
                by_name[own_name] = first if first.name == own_name else file
            elif first is not file:
                alike.append((first, file))
        chosen[name] = list(by_name.values())
    _check_same(alike)
    return chosen


def _check_same(pairs: list[tuple[RawFile, RawFile]]) -> None:
    """Refuse two files of one name that differ; archives are read once more for it, in one pass each."""
    for first, second in pairs:
        if isinstance(first, Member) and isinstance(second, Member) and (
                (first.path, first.names) == (second.path, second.names)):
            raise DataError(f"{first} stands there twice; unpack the archive, leave one of them, and name its folder "
                            "with --raw_dir")
        if size_of(first) != size_of(second):
            raise DataError(f"{first} and {second} differ; leave only one of them there")
    for (first, second), *checksums in zip(pairs, *map(_checksums, zip(*pairs, strict=True)), strict=True):
        if checksums[0] != checksums[1]:
            raise DataError(f"{first} and {second} differ; leave only one of them there")


def _checksums(files: Iterable[RawFile]) -> Iterator[int]:
    """Yield the CRC-32 of files, see `open_files`."""
    for file, stream in open_files(files):
        checksum = 0
        with archive_errors(disk_file(file)):
            while block := stream.read(CHECKED_BYTES):
                checksum = zlib.crc32(block, checksum)
        yield checksum


def _kind(name: str) -> tuple[str, int] | None:
    """Return which kind of raw file a name says, and which of the kind's patterns fits; None for any other file."""
    name = unwrapped_name(name)
    return next(((kind, number) for kind, patterns in _KINDS.items() for number, pattern in enumerate(patterns)
                 if re.fullmatch(pattern, name)), None)


def _first_movie(file: RawFile) -> tuple[int, str]:
    """Return what rating files are ordered by."""
    with open_file(file) as stream:
        header = stream.readline(20).removeprefix(BYTE_ORDER_MARK).strip().removesuffix(b":")
    return int(header) if header.isdigit() else 0, file.name
