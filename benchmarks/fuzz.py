"""Fuzz the three parsers (ratings, probe, titles): any bytes must become arrays or one DataError.

    python -m venv fuzzing && fuzzing/bin/pip install -r requirements.txt atheris
    fuzzing/bin/python benchmarks/fuzz.py --seconds 120

With atheris the search is guided by coverage; where it is not installed, seeds are mutated at random. Prints the
inputs tried and the crashes of each parser, then one line of JSON; exit code 1 if there was a crash, whose input is
then printed.
"""

import argparse
import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import atheris
except ImportError:
    atheris = None

with atheris.instrument_imports(include=["preprocessing"]) if atheris else contextlib.nullcontext():
    from preprocessing import lines, parsing, titles
    from preprocessing.dataset import DataError

MOST_BYTES = 600  # of an input
SEEDS = {
    "ratings": [b"1:\n30878,4,2005-12-26\n823519,3,2004-05-03\n2:\n7,5,0001-01-01\n", b"17770:\r\n1,1,9999-12-31\r\n",
                b"1:\n\n2:\n2147483648,2,2000-02-29", b"2147483647:\n99999999999,5,1999-11-11\n"],
    "probe": [b"1:\n30878\n2647871\n10:\n1952305\n", b"1:\r\n5\r\n", b"3:\n99999999999"],
    "titles": [b"1,2003,Dinosaur Planet\n2,NULL,A, B and C\n", "3,1997,Caf\u00e9\r\n".encode("latin-1"),
               b"\xef\xbb\xbfmovie_id,year,title\n4,1995.0,\"Quoted\"\n", "5,0001,\u4e03\u4eba\n".encode()],
}
TOKENS = [b"\n", b"\r\n", b":", b",", b"-", b"\0", b"\xff", b" ", b"0", b"9" * 12, b"2147483648", b"NULL",
          b"2005-02-29", b"0000-00-00", b"+", b".5", b"1:\n", b",5,2005-01-01\n", b"\n" * 70, b"\xc3", b"\xe2\x80\xa8"]


def main() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60, metavar="S", help="for all parsers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the search (default: %(default)s)")
    parser.add_argument("--parser", choices=SEEDS, help="fuzz this one, in this process")
    args = parser.parse_args()
    if args.parser:
        return fuzz(args.parser, args.seconds, args.seed)
    rows = []
    for name in SEEDS:
        command = [sys.executable, __file__, "--parser", name, "--seconds", str(max(args.seconds // len(SEEDS), 1)),
                   "--seed", str(args.seed)]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace",
                              env={**os.environ, "TQDM_DISABLE": "1"})
        tried = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
        rows.append({"parser": name, "inputs": int(tried[1]) if tried else 0, "crashes": int(done.returncode != 0),
                     "seconds": round(time.perf_counter() - start, 1)})
        print("{parser:<8} {inputs:>10,} inputs {crashes:>3} crashes {seconds:>7.1f} s".format(**rows[-1]), flush=True)
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-2000:])
    print(json.dumps({"guided_by_coverage": atheris is not None, "parsers": rows}))
    return int(any(row["crashes"] for row in rows))


def fuzz(name: str, seconds: int, seed: int) -> int:
    """Fuzz one parser in this process; its number of inputs goes to standard error, as libFuzzer writes it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        check = checker(name, Path(folder) / "input")
        if atheris is None:
            return mutate(check, SEEDS[name], seconds, random.Random(seed))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, text in enumerate(SEEDS[name]):
            (corpus / str(number)).write_bytes(text)
        words = Path(folder) / "words"
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in token) + '"\n' for token in TOKENS),
                         encoding="utf-8")
        atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}",
                       f"-seed={seed}", f"-dict={words}", "-timeout=20", "-print_final_stats=1",
                       f"-artifact_prefix={folder}/"], check)
        atheris.Fuzz()
    return 0


def checker(name: str, path: Path) -> Callable[[bytes], None]:
    """Return a function that raises, other than DataError, where a parser does not do what it promises."""
    parsing.num_cores = lambda: 1

    def ratings(data: bytes) -> None:
        path.write_bytes(data)
        # Small pieces: what a block or a range cuts apart is part of what is searched.
        parsing.RANGE_BYTES, parsing.BLOCK_BYTES = [(8 << 20, 1 << 19), (40, 25), (7, 5)][len(data) % 3]
        runs = parsing.parse_files([path], with_stars=name == "ratings")
        stars, days = lines.stars_of(runs.cells), lines.days_of(runs.cells)
        assert len(runs) == len(runs.cells) <= data.count(b"\n") + 1
        assert (runs.movie_ids < 2**31).all() and (lines.user_ids_of(runs.cells) < 10**11).all()
        if name == "ratings" and len(runs):
            assert stars.min() >= 1 and stars.max() <= 5 and days.max() <= 3_652_424

    def title(data: bytes) -> None:
        path.write_bytes(data)
        read = titles.read_titles(path)
        assert len(read.movie_id) == len(read.year) == len(read.title) <= data.count(b"\n") + 1
        assert (read.movie_id[1:] > read.movie_id[:-1]).all() and not any("\n" in text for text in read.title)

    parse = title if name == "titles" else ratings

    def check(data: bytes) -> None:
        try:
            parse(data)
        except DataError as error:
            sentence = str(error)
            assert sentence.startswith(f"{path}, line ") and sentence.isprintable() and len(sentence) < 500

    return check


def mutate(check: Callable[[bytes], None], seeds: list[bytes], seconds: int, chance: random.Random) -> int:
    """Try random changes of the seeds until the time is up; return 1 and print the input at the first crash."""
    end, tried, code, pool = time.monotonic() + seconds, 0, 0, list(seeds)
    while not code and time.monotonic() < end:
        data = bytearray(chance.choice(pool))
        for _ in range(chance.randint(1, 6)):
            place, kind = chance.randint(0, len(data)), chance.randrange(4)
            if kind == 0:
                data[place:place] = chance.choice(TOKENS)
            elif kind == 1:
                del data[place:place + chance.randint(1, 9)]
            elif kind == 2:
                data[place:place + 1] = bytes([chance.randrange(256)])
            else:
                other = chance.choice(pool)
                data[place:] = other[chance.randint(0, len(other)):]
        data, tried = bytes(data[:MOST_BYTES]), tried + 1
        try:
            check(data)
        except Exception as error:
            code = 1
            print(f"{type(error).__name__}: {error}\ninput: {data!r}", file=sys.stderr)
        if len(pool) < 2000 and tried % 50 == 0:
            pool.append(data)
    print(f"number_of_executed_units: {tried}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
