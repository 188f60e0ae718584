"""Tell a person who starts a command outside of its environment how to enter it, in one sentence.

Every stage's `__init__.py` names the packages without which it cannot be imported.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 11)


def require(*packages: str) -> None:
    """End a command of this repository with exit code 1 and a sentence unless this Python has some packages.

    Anybody else who imports a stage, a notebook for one, gets Python's own error where the package is used.
    """
    command = getattr(sys.modules["__main__"], "__file__", None)
    if command is None or ROOT not in Path(command).resolve().parents:
        return
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(f"error: this is Python {sys.version_info[0]}.{sys.version_info[1]}; 3.11 or newer is needed")
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        here = Path() if Path.cwd() == ROOT else ROOT
        activate = here / ".venv" / ("Scripts/activate" if sys.platform == "win32" else "bin/activate")
        sys.exit(f"error: {sys.executable} has no {missing[0]}; enter the environment with: . {activate}, or install "
                 f"what is needed with: python -m pip install -r {here / 'requirements.txt'}")
