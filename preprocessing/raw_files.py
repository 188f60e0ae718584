"""Read raw files, however they are wrapped, as streams of bytes.

A raw file is a plain file (a `Path`) or a `Member`: compressed, in an archive, or in an archive within an archive, as
the ratings are in the original nf_prize_dataset.tar.gz. Members are read in blocks; nothing is unpacked onto the disk.
"""

import bz2
import contextlib
import gzip
import io
import itertools
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from preprocessing.dataset import DataError, printable

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8, as some editors write it before the first line
BLOCK_BYTES = 1 << 14  # of an archive, read at once; tarfile copies what is left of a block at every read

OPENERS: dict[str, Callable] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_SHORT = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"}  # of a compressed .tar


@dataclass(frozen=True)
class Member:
    """A raw file that is wrapped in another one."""

    path: Path  # of the file on the disk
    names: tuple[str, ...]  # from archive to archive, its own name last; empty for a compressed file
    num_bytes: int  # unwrapped
    data: bytes | None = None  # all of them, of a file that is read whole

    def __str__(self) -> str:
        """Return the name that a message gives it; what stands in an archive cannot steer a terminal."""
        return f"{self.path}{printable(''.join(f':{name}' for name in self.names))}"

    @property
    def name(self) -> str:
        """Its own name, as it was before it was compressed."""
        return unwrapped_name(self.names[-1] if self.names else self.path.name)

    def read_bytes(self) -> bytes:
        """Return the whole content."""
        with open_file(self) as stream:
            return stream.read()


RawFile = Path | Member


def size_of(file: RawFile) -> int:
    """Return how many bytes a file has, unwrapped."""
    return file.num_bytes if isinstance(file, Member) else file.stat().st_size


def disk_file(file: RawFile) -> Path:
    """Return the file on the disk that a raw file is or lies in."""
    return file.path if isinstance(file, Member) else file


def unwrapped_name(name: str) -> str:
    """Return a file's name without folders and compression, in small letters: Probe.txt.gz is probe.txt."""
    name = name.replace("\\", "/").rpartition("/")[2].lower()
    stem, suffix = suffix_of(name)
    return stem if suffix in OPENERS else name


# --- reading -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_file(file: RawFile) -> Iterator[IO[bytes]]:
    """Open one raw file to be read from its beginning; in an archive all that stands before it is passed over."""
    with contextlib.closing(open_files([file])) as opened, archive_errors(disk_file(file)):
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
            with archive_errors(disk_file(file)):
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
    with archive_errors(path), open(path, "rb") as file, contextlib.closing(walk(file, path.name)) as files:
        for names, _, stream in files:
            if member := wanted.pop(names, None):
                yield member, stream
                if not wanted:
                    return
    raise DataError(f"{next(iter(wanted.values()))} is not there any more; was the archive changed?")


def walk(file: IO[bytes], name: str, size: int | None = None, names: tuple[str, ...] = ()
          ) -> Generator[tuple[tuple[str, ...], int | None, IO[bytes]]]:
    """Yield the names from archive to archive, the size where the archive tells it, and a stream of each file."""
    stem, suffix = suffix_of(name)
    if suffix in OPENERS:
        file, name, size = OPENERS[suffix](file), stem, None
        suffix = suffix_of(name)[1]
    if suffix == ".tar":
        with tarfile.open(fileobj=file, mode="r|*", bufsize=BLOCK_BYTES, tarinfo=_Entry) as archive:  # never goes back
            for entry in archive:
                if entry.isfile() and (member := archive.extractfile(entry)):
                    yield from walk(member, entry.name, entry.size, (*names, entry.name))
    elif suffix == ".zip":
        if names and not isinstance(file, zipfile.ZipExtFile):  # a zip's list stands at its end
            raise DataError(f"{':'.join(names)}: a .zip can be read within a .zip, but not within a .tar; unpack the "
                            "outer archive and name its folder with --raw_dir")
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as opened:
                        yield from walk(opened, info.filename, info.file_size, (*names, info.filename))
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
def archive_errors(path: Path) -> Iterator[None]:
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


def suffix_of(name: str) -> tuple[str, str]:
    """Return a name without its last suffix, and the suffix, in small letters; .tgz is .tar.gz."""
    stem, point, suffix = name.lower().rpartition(".")
    if point + suffix in _SHORT:
        return f"{stem}.tar", _SHORT[point + suffix]
    return (stem, point + suffix) if point else (suffix, "")
