"""The sessions in the documents are what the present code prints, on the data and the run that `make demo` leaves.

A session is a command after "$ " in a block without language, with what it printed below it; or a block of Python and,
if it prints something, the block behind it. Words must be the same, and figures with a decimal point nearly, for
another processor rounds otherwise in training. A line "..." stands for lines that are left out. `$ cat FILE` shows a
file, which the commands after it may read. Each document's sessions run in one folder, in order, and its Python in one
namespace. A block after an HTML comment that begins with "not run" is passed over.

`make sessions` makes the demo anew and writes into the documents what is printed then, pictures too.
"""

import contextlib
import datetime
import difflib
import importlib
import io
import itertools
import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "demo"
DOCUMENTS = ("README.md", "docs/recommending.md", "docs/python.md", "docs/data.md")
TOLERANCE = 0.01  # of a figure; or one unit of its last digit, where that is more
LEFT_OUT = "..."
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIGURE = re.compile(r"\d+\.\d+")
PICTURES = {"docs/pictures/movie_map.png": "map.png", "docs/pictures/training.png": "demo/run/training.png"}


@pytest.mark.skipif(not (DEMO / "run" / "test_metrics.json").exists(), reason="no demo/run; run make demo first")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_shows_is_what_is_printed(document, tmp_path, monkeypatch):
    (tmp_path / "demo").symlink_to(DEMO)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text(encoding="utf-8")
    renewed, wrong = text, []
    for command, printed, (start, end) in reversed(list(run_sessions(text))):
        shown = text[start:end].splitlines()
        aligned = align(shown, printed)
        renewed = renewed[:start] + "".join(f"{line}\n" for line in aligned) + renewed[end:]
        if len(aligned) != len(shown) or not all(map(is_same, shown, aligned)):
            wrong.append("\n".join([command, *difflib.unified_diff(shown, aligned, "shown", "printed", lineterm="")]))
    if os.environ.get("RENEW_SESSIONS"):
        if renewed != text:
            today = datetime.date.today()
            renewed = re.sub(r"(?<=\bseed 0, )\d{4}-\d\d-\d\d", str(today), renewed)
            (ROOT / document).write_text(renewed, encoding="utf-8")
        for picture, source in PICTURES.items():
            if Path(source).exists():
                with Image.open(source) as drawn:  # with a palette a third of the size, and no eye can tell
                    drawn.convert("RGB").quantize(128).save(ROOT / picture, optimize=True)
    else:
        assert not wrong, "\n\n".join(["if it is meant, or demo/ is older than the code: make sessions", *wrong[::-1]])


@pytest.mark.parametrize(("shown", "printed", "expected"), [
    ("4.57 ****", "4.60 ***", True),
    ("4.57 stars", "4.62 stars", False),
    ("+0.04 for 4 stars", "+0.03 for 4 stars", True),
    ("+0.04 for 4 stars", "+0.04 for 5 stars", False),
    ("rank  id", "rank   id", True),
    ("rank  id", "rank  it", False),
    ("rmse 0.7317", "rmse 0.7389", True),
    ("rmse 0.7317", "rmse 0.7399", False),
])
def test_words_are_the_same_and_figures_nearly(shown, printed, expected):
    assert is_same(shown.replace("*", "★"), printed.replace("*", "★")) is expected


@pytest.mark.parametrize(("shown", "expected"), [
    (["old", "1", "2"], ["a 1", "b 1", "c 1", "b 2", "c 3"]),
    (["a 0", "...", "c 5"], ["a 1", "...", "c 3"]),
    (["...", "b 2", "..."], ["...", "b 2", "..."]),
    (["...", "b 7", "c 1", "...", "b 8", "..."], ["...", "b 1", "c 1", "...", "b 2", "..."]),
])
def test_lines_are_left_out_where_the_document_says_so(shown, expected):
    assert align(shown, ["a 1", "b 1", "c 1", "b 2", "c 3"]) == expected


def test_sessions_are_found_and_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = ("```\nno session\n```\n```\n$ cat a.txt\nhello\n\n$ cat b.txt\n```\n"
            "```python\nx = open('a.txt').read()\n```\n"
            "```python\nprint(x * 2)\n```\n\n```\nshown\n```\n<!-- not run: why -->\n```python\nfail\n```\n")
    found = [(command, printed, text[slice(*place)]) for command, printed, place in run_sessions(text)]
    assert found == [("print(x * 2)\n", ["hello", "hello", ""], "shown\n")]


def run_sessions(text: str) -> Iterator[tuple[str, list[str], tuple[int, int]]]:
    """Run a document's sessions; yield each command, the lines that it printed, and where its shown output stands."""
    namespace: dict = {"__name__": "session"}
    blocks = [*BLOCK.finditer(text), None]
    for block, following in itertools.pairwise(blocks):
        language, content = block[1], block[2]
        if re.search(r"<!-- not run[^>]*-->\s*\Z", text[:block.start()]):
            continue
        if language == "python":
            printed = printed_by(exec, compile(content, "<session>", "exec"), namespace)
            is_shown = following and following[1] in ("", "text") and not following[2].startswith("$ ")
            if is_shown and not text[block.end():following.start()].strip():
                yield content, printed, following.span(2)
        elif not language and content.startswith("$ "):
            for session in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*?)(?=\n*(?:\$ |\Z))", content, re.MULTILINE):
                words = shlex.split(session[1])
                if words[0] == "cat":
                    Path(words[1]).write_text(session[2], encoding="utf-8")
                else:
                    place = (block.start(2) + session.start(2), block.start(2) + session.end(2))
                    yield session[1], run_command(words), place


def run_command(words: list[str]) -> list[str]:
    """Return the lines that a command prints; of `make demo` those after the training, which it has done."""
    if words == ["make", "demo"]:
        recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        lines = run_command(["python", "main.py", "--eval_only"])
        for step in recipe[1].replace("\t@", "\t").splitlines():
            words = shlex.split(step.replace("$(PY)", "python"))
            lines += words[1:] if words[0] == "echo" else run_command(words)
        return lines
    assert words[0] == "python", words
    module = importlib.import_module(words[1].removesuffix(".py").replace("/", "."))
    of_demo = [] if "--run_dir" in words or "preprocessing/" in words[1] else ["--run_dir", "demo/run"]
    return printed_by(module.main, [*words[2:], *of_demo])


def printed_by(work: Callable[..., object], *args: object) -> list[str]:
    """Return the lines that a call prints to standard output and errors, as a terminal shows them."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
        work(*args)
    return [line.rstrip() for line in printed.buffer.getvalue().decode("utf-8").splitlines()]


def align(shown: list[str], printed: list[str]) -> list[str]:
    """Return what is printed, without what `shown` leaves out: of each piece between, the lines most like it."""
    pieces: list[list[str]] = [[]]
    for line in shown:
        pieces += [[]] if line == LEFT_OUT else []
        pieces[-1] += [line] if line != LEFT_OUT else []
    if len(pieces) == 1:
        return printed
    aligned, begin = [], 0
    for number, piece in enumerate(pieces):
        last = max(len(printed) - len(piece), begin)
        starts = [0] if not number else [last] if piece is pieces[-1] else range(begin, last + 1)

        def likeness(start: int, piece: list[str] = piece) -> float:
            return sum(difflib.SequenceMatcher(None, *lines).ratio() for lines in zip(piece, printed[start:]))

        start = max(starts, key=likeness)
        begin = start + len(piece)
        aligned += [LEFT_OUT] * bool(number) + printed[start:begin]
    return aligned


def is_same(shown: str, printed: str) -> bool:
    """Tell whether two lines have the same words and nearly the same figures; the stars drawn follow from these."""
    words = [FIGURE.sub("0.0", re.sub("[★½]", "", line)).split() for line in (shown, printed)]
    return words[0] == words[1] and all(
        abs(float(before) - float(now)) <= max(TOLERANCE * float(before), 10.0 ** -len(before.partition(".")[2])) + 1e-9
        for before, now in zip(FIGURE.findall(shown), FIGURE.findall(printed)))
