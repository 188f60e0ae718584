"""Compile the loops of a CPU in a process of its own, beside a first run's imports and the reading of its data.

Nothing is done where an earlier run has left the compiled code.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

LOOPS = Path(__file__).with_name("numba_loops.py")
_compiler: subprocess.Popen | None = None


def start() -> None:
    """Begin to compile, unless the code is there, or another rank of this machine does it."""
    global _compiler
    kept = (path.stat().st_mtime for folder in _folders() for path in folder.glob("numba_loops.row_adam-*.nbi"))
    if max(kept, default=0.0) < LOOPS.stat().st_mtime and os.environ.get("LOCAL_RANK", "0") == "0":
        with contextlib.suppress(OSError):  # it is compiled where it is first called
            _compiler = subprocess.Popen([sys.executable, "-m", "models.ops.numba_loops"], cwd=LOOPS.parents[2],
                                         stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL, start_new_session=True)


def finish() -> None:
    """Wait until what `start` has begun is done."""
    global _compiler
    if _compiler is not None:
        _compiler.wait()
        _compiler = None


def _folders() -> list[Path]:
    """Return where Numba keeps compiled code of this folder: in a folder that the environment names, or beside it."""
    named = os.environ.get("NUMBA_CACHE_DIR")
    return [*Path(named).glob(f"{LOOPS.parent.name}*")] if named else [LOOPS.parent / "__pycache__"]
