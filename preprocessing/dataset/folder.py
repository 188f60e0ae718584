"""Replace a file or a data set's folder whole: whatever kills the program, the old one or the new one is there.

The new one is written under a hidden name beside the old one, synced to the disk, and takes its place in one step.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from preprocessing.dataset.records import DataError
from preprocessing.dataset.schema import FILES


@contextlib.contextmanager
def replace_dataset(out_dir: Path) -> Iterator[Path]:
    """Yield an empty folder to write a data set into; on success it takes the place of `out_dir` in one step.

    On any failure, Ctrl-C included, the folder is removed and `out_dir` is as it was. What a killed run left
    behind is removed by the next one.

    Raises:
        DataError: `out_dir` holds something that is not a data set, or another run is writing it.
    """
    out_dir = out_dir.resolve()
    if out_dir.exists() and not out_dir.is_dir():
        raise DataError(f"{out_dir} is a file; name a folder with --out_dir")
    if out_dir.is_dir():
        foreign = sorted(path.name for path in out_dir.iterdir() if path.name not in FILES)
        if foreign:
            raise DataError(f"{out_dir} holds {foreign[0]!r}, which is no part of a data set and would be lost; "
                            "choose another --out_dir")
    new_parents = [folder for folder in out_dir.parents if not folder.exists()]  # the innermost first
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = out_dir.with_name(f".{out_dir.name}.partial")
    if partial.is_symlink():
        partial.unlink()
    partial.mkdir(exist_ok=True)
    try:
        with locked(partial, f"another run is writing {out_dir}; wait for it, or choose another --out_dir"):
            try:
                _empty(partial)
                yield partial
                for path in partial.iterdir():
                    sync(path)
                _exchange(partial, out_dir)
                sync(out_dir.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # not empty: the data set is there
            for folder in new_parents:
                folder.rmdir()


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file beside `path` to write; on success it takes the place of `path` in one step.

    On any failure, Ctrl-C included, the temporary file is removed and `path` is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # in a folder from a stranger it could be a link to anywhere
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(folder: Path, otherwise: str) -> Iterator[None]:
    """Hold a folder for this process; the lock vanishes with the process.

    Raises:
        DataError: another process holds it; `otherwise` is the sentence.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(otherwise) from None
        yield
    finally:
        os.close(lock)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _empty(folder: Path) -> None:
    """Remove what a killed run left in the folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _exchange(new: Path, old: Path) -> None:
    """Put folder `new` in the place of folder `old`, in one step where the system can swap two names, as Linux can."""
    if not old.exists():
        new.rename(old)
        return
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, rename_exchange = -100, 2
    if swap is not None:
        if swap(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), rename_exchange) == 0:
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    aside = new.with_name(new.name + ".old")
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)
