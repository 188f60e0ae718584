"""Find the raw files of the Netflix Prize, however they are wrapped, and read them as streams of bytes.

A raw file is a plain file (a `Path`) or a `Member`: compressed, in an archive, or in an archive within an archive, as
the ratings are in the original nf_prize_dataset.tar.gz. Members are read in blocks; nothing is unpacked onto the disk.
"""

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from preprocessing.dataset import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8, as some editors write it before the first line
BLOCK_BYTES = 1 << 14  # of an archive, read at once; tarfile copies what is left of a block at every read
MAX_DEPTH = 2  # of folders in the raw folder, as in download/training_set/mv_0000001.txt

_OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SHORT = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"}  # of a compressed .tar
_ARCHIVES = (".tar", ".zip")
_KINDS = {  # of which files are which: of each kind, those of the first pattern that fits any
    "ratings": (r"combined_data_.*\.txt", r"mv_\d+\.txt"),
    "titles": (r"movie_titles\.csv", r"movie_titles\.txt"),
    "probe": (r"probe\.txt",),
}


@dataclass(frozen=True)
class Member:
    """A raw file that is wrapped in another one."""

    path: Path  # of the file on the disk
    names: tuple[str, ...]  # from archive to archive, its own name last; empty for a compressed file
    num_bytes: int  # unwrapped
    data: bytes | None = None  # all of them, of a file that is read whole

    def __str__(self) -> str:
        """Return the name that a message gives it; what stands in an archive cannot steer a terminal."""
        names = "".join(letter if letter.isprintable() else "?" for name in self.names for letter in f":{name}")
        return f"{self.path}{names}"

    @property
    def name(self) -> str:
        """Its own name, as it was before it was compressed."""
        return unwrapped_name(self.names[-1] if self.names else self.path.name)

    def read_bytes(self) -> bytes:
        """Return the whole content."""
        with open_file(self) as stream:
            return stream.read()


RawFile = Path | Member


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


def size_of(file: RawFile) -> int:
    """Return how many bytes a file has, unwrapped."""
    return file.num_bytes if isinstance(file, Member) else file.stat().st_size


def disk_file(file: RawFile) -> Path:
    """Return the file on the disk that a raw file is or lies in."""
    return file.path if isinstance(file, Member) else file


def unwrapped_name(name: str) -> str:
    """Return a file's name without folders and compression, in small letters: Probe.txt.gz is probe.txt."""
    name = name.replace("\\", "/").rpartition("/")[2].lower()
    stem, suffix = _suffix(name)
    return stem if suffix in _OPENERS else name


# --- reading -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_file(file: RawFile) -> Iterator[IO[bytes]]:
    """Open one raw file to be read from its beginning; in an archive all that stands before it is passed over."""
    with contextlib.closing(open_files([file])) as opened, _archive_errors(disk_file(file)):
        yield next(opened)[1]


def open_files(files: Iterable[RawFile]) -> Generator[tuple[RawFile, IO[bytes]]]:
    """Yield the files and a stream of each, good until the next one is asked for; an archive is read in one pass.

    Args:
        files: those of an archive stand side by side, in the order in which `find_files` lists them.

    Raises:
        DataError: an archive is damaged, or lacks one of the files.
    """
    for path, group in itertools.groupby(files, disk_file):
        for is_wrapped, wanted in itertools.groupby(group, lambda file: isinstance(file, Member) and file.data is None):
            if is_wrapped:
                yield from _open_members(path, [file for file in wanted if isinstance(file, Member)])
                continue
            for file in wanted:
                with io.BytesIO(file.data or b"") if isinstance(file, Member) else open(file, "rb") as stream:
                    yield file, stream


def read_blocks(files: list[RawFile], num_bytes: int, longest_line: int) -> Iterator[tuple[RawFile, int, bytes]]:
    """Yield the bytes of files in blocks of about `num_bytes` that are whole lines, with the offset of each.

    A line longer than `longest_line` is cut: no reader takes it for a legal one.
    """
    for file, stream in open_files(files):
        offset, rest, at_end = 0, b"", False
        while not at_end:
            with _archive_errors(disk_file(file)):
                block = stream.read(num_bytes)
            text, at_end = rest + block, len(block) < num_bytes
            cut = text.rfind(b"\n") + 1
            if at_end or len(text) - cut > longest_line:
                cut = len(text)
            if cut:
                yield file, offset, text[:cut]
            offset, rest = offset + cut, text[cut:]


def _open_members(path: Path, members: list[Member]) -> Iterator[tuple[Member, IO[bytes]]]:
    """Yield some members of an archive, and a stream of each."""
    wanted = {member.names: member for member in members}
    with _archive_errors(path), open(path, "rb") as file, contextlib.closing(_walk(file, path.name)) as files:
        for names, _, stream in files:
            if member := wanted.pop(names, None):
                yield member, stream
                if not wanted:
                    return
    raise DataError(f"{next(iter(wanted.values()))} is not there any more; was the archive changed?")


def _walk(file: IO[bytes], name: str, size: int | None = None, names: tuple[str, ...] = ()
          ) -> Generator[tuple[tuple[str, ...], int | None, IO[bytes]]]:
    """Yield the names from archive to archive, the size where the archive tells it, and a stream of each file."""
    stem, suffix = _suffix(name)
    if suffix in _OPENERS:
        file, name, size = _OPENERS[suffix](file), stem, None
        suffix = _suffix(name)[1]
    if suffix == ".tar":
        with tarfile.open(fileobj=file, mode="r|*", bufsize=BLOCK_BYTES, tarinfo=_Entry) as archive:  # never goes back
            for entry in archive:
                if entry.isfile() and (member := archive.extractfile(entry)):
                    yield from _walk(member, entry.name, entry.size, (*names, entry.name))
    elif suffix == ".zip":
        if names and not isinstance(file, zipfile.ZipExtFile):  # a zip's list stands at its end
            raise DataError(f"{':'.join(names)}: a .zip can be read within a .zip, but not within a .tar; unpack the "
                            "outer archive and name its folder with --raw_dir")
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as opened:
                        yield from _walk(opened, info.filename, info.file_size, (*names, info.filename))
    else:
        yield names, size, file


class _Entry(tarfile.TarInfo):
    """An entry of a tar archive; a damaged one raises an error, where tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Entry":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf and not any(buf):  # zeros: the end
                raise
            raise tarfile.ReadError(f"an entry is damaged or cut: {error}") from None


@contextlib.contextmanager
def _archive_errors(path: Path) -> Iterator[None]:
    """Turn what the readers of archives raise into one sentence."""
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError,
            RuntimeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's own
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise DataError(f"{path} cannot be read as an archive ({reason}); fetch it again, or unpack it and name its "
                        "folder with --raw_dir") from None


# --- finding -----------------------------------------------------------------------------------------------------


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
                is_compressed = _suffix(path.name)[1] in _OPENERS
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
    with _archive_errors(path), open(path, "rb") as file, contextlib.closing(_walk(file, path.name)) as files:
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
        DataError: two folders or archives hold different files of one name.
    """
    by_kind: dict[str, dict[tuple[int, int], list[RawFile]]] = {}
    for depth, file in files:
        if (kind := _kind(file.name)) and kind[0] in kinds:
            by_kind.setdefault(kind[0], {}).setdefault((depth, kind[1]), []).append(file)
    chosen: dict[str, list[RawFile]] = {}
    for name, places in by_kind.items():
        by_name: dict[str, RawFile] = {}
        for file in places[min(places)]:
            own_name = unwrapped_name(file.name)
            first = by_name.setdefault(own_name, file)
            if type(first) is not type(file):
                by_name[own_name] = first if isinstance(first, Path) else file
            elif first.name != file.name:  # by capital letters alone
                by_name[own_name] = first if first.name == own_name else file
            elif size_of(first) != size_of(file):
                raise DataError(f"{first} and {file} differ; leave only one of them there")
        chosen[name] = list(by_name.values())
    return chosen


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


def _suffix(name: str) -> tuple[str, str]:
    """Return a name without its last suffix, and the suffix, in small letters; .tgz is .tar.gz."""
    stem, point, suffix = name.lower().rpartition(".")
    if point + suffix in _SHORT:
        return f"{stem}.tar", _SHORT[point + suffix]
    return (stem, point + suffix) if point else (suffix, "")
