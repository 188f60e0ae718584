"""How the commands end: one sentence on stderr for each kind of failure, and the exit code."""

import contextlib
import errno
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from preprocessing.dataset.records import CutShort, DataError


class Terminated(KeyboardInterrupt):
    """SIGTERM has come: a job's scheduler sends it before it kills."""


def exit_code(work: Callable[[], object], where: object, outcome: Callable[[], str] | None = None) -> int:
    """Run a command's work and return its exit code.

    0 done, 1 the work failed (a sentence on stderr says why), 130 Ctrl-C, 143 SIGTERM.

    Args:
        where: file or folder to name for an OSError that names none.
        outcome: says what state the files are in after a failure or an interruption.
    """
    def with_outcome(sentence: str) -> str:
        return sentence if outcome is None else f"{sentence}; {outcome()}"

    try:
        with _sigterm_interrupts():
            work()
    except DataError as error:
        sentence = with_outcome(str(error)) if isinstance(error, CutShort) else str(error)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or error
        sentence = with_outcome(f"{error.filename or where}: {reason}")
    except MemoryError:
        sentence = with_outcome("out of memory")
    except KeyboardInterrupt as interrupt:
        print(with_outcome("\ninterrupted"), file=sys.stderr)
        return 143 if isinstance(interrupt, Terminated) else 130
    else:
        return 0
    print(f"error: {sentence}", file=sys.stderr)
    return 1


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that it cleans up; Python allows this in the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is terminate:  # else the work has chosen another, for good
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
