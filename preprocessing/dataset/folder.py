"""Replace a file or a data set's folder whole: whatever kills the program, the old one or the new one is there.

The new one is written under a hidden name beside the old one, synced to the disk, and takes its place in one step.
"""

import contextlib
import ctypes
import errno
import os
import shutil
import sys
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
    partial, aside = (out_dir.with_name(f".{out_dir.name}.{state}") for state in ("partial", "partial.old"))
    try:
        with locked(lock_beside(out_dir), f"another run is writing {out_dir}; wait for it, or choose another "
                                          "--out_dir"):
            _finish_exchange(aside, out_dir)
            if partial.is_symlink():
                partial.unlink()
            partial.mkdir(exist_ok=True)
            try:
                _empty(partial)
                yield partial
                for path in partial.iterdir():
                    sync(path)
                _exchange(partial, out_dir, aside)
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
def locked(path: Path, otherwise: str) -> Iterator[None]:
    """Hold a lock, an empty file that is there for so long; the lock, though not the file, vanishes with the process.

    Raises:
        DataError: another process holds it; `otherwise` is the sentence.
    """
    from filelock import FileLock, Timeout  # takes a list of movies 20 ms, which needs none

    if path.is_symlink():  # in a folder from a stranger it could be one to anywhere
        path.unlink()
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(otherwise) from None
    except OSError as error:
        error.filename = str(path.parent)  # which cannot be written; of the lock nobody knows
        raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # of Windows, which removes no open file
            path.unlink()  # while it is held: whoever waits for this file sees that it is gone, and makes another
        lock.release()
        if os.name == "nt":
            with contextlib.suppress(OSError):  # another run has opened it
                path.unlink()


def lock_beside(path: Path) -> Path:
    """Return the lock of whoever writes a file or folder that is replaced whole."""
    return path.with_name(f".{path.name}.lock")


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folder
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # and syncs what it may write to
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


def _exchange(new: Path, old: Path, aside: Path) -> None:
    """Put folder `new` in the place of folder `old`, in one step where the system can swap two names, as Linux can;
    elsewhere in two, between which `old` is called `aside`."""
    if not old.exists():
        new.rename(old)
        return
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    at_cwd, rename_exchange = -100, 2
    if swap is not None:
        if swap(at_cwd, os.fsencode(new), at_cwd, os.fsencode(old), rename_exchange) == 0:
            return
        if ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(old))
    old.rename(aside)
    try:
        new.rename(old)
    finally:
        _finish_exchange(aside, old)


def _finish_exchange(aside: Path, old: Path) -> None:
    """Put the folder that an exchange, perhaps of a killed run, has set aside back, or remove it if it is replaced."""
    if aside.is_symlink():
        aside.unlink()
    elif aside.is_dir() and not old.exists():
        aside.rename(old)
    elif aside.is_dir():
        shutil.rmtree(aside)
