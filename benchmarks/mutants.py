"""Plant small faults in the product, one at a time, and see whether the tests notice.

    make mutants                                         300 drawn by the seed, and those of tests/aimed_faults.toml
    python benchmarks/mutants.py --files rec.py models/temporal.py --number 60
    python benchmarks/mutants.py --survivors_of mutants.json      those again that nothing noticed last time

A fault is drawn from the syntax tree: a comparison moved by one, a term or a keyword dropped, a sign, a number changed,
a branch turned round, a statement left out. One run of the suite under coverage tells which tests pass through which
lines, also by way of fixtures that are shared; compiled loops are passed through by who calls their module. Each fault
is planted in a copy of the tree and meets the tests that pass through it, quick ones first, until one fails. A worker
has imported the libraries once and forks for every fault.

Prints a table by file and every survivor, with its reason where tests/explained_survivors.toml has one (the behaviour
is the same), then one line of JSON. Results by fault are written to --out.
"""

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.faults import ROOT, Fault, aimed, places, product_files
from benchmarks.passing import PassingTests, passed_through

EXPLAINED = "tests/explained_survivors.toml"
FEWEST = 4  # faults of a file, where it has so many places
FIRST_TESTS = 12  # of those that meet a fault, which are collected before the others
SLACK_S = 30.0  # beyond three times that, a fault hangs, which somebody would notice
MOST_BYTES = 12 << 30  # of memory, likewise


@dataclass
class Result:
    """What became of a fault: "noticed", "survived", "hung" or "untested"."""

    fault: Fault
    fate: str
    by: str = ""
    seconds: float = 0.0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--number", type=int, default=300, metavar="N", help="faults to draw (default: 300)")
    parser.add_argument("--seed", type=int, default=0, metavar="I", help="of the draw (default: 0)")
    parser.add_argument("--files", nargs="+", metavar="FILE", help="only of these files (default: all of the product)")
    parser.add_argument("--only", choices=("drawn", "aimed"), help="only those drawn, or only those aimed by hand")
    parser.add_argument("--survivors_of", type=Path, metavar="FILE", help="only those that survived in an older --out")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), metavar="FILE",
                        help="results by fault (default: %(default)s)")
    parser.add_argument("--map", type=Path, metavar="FILE",
                        help="keep what tests pass through which lines here, and take it from here where it is there")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N")
    args = parser.parse_args(argv)
    if sys.platform != "linux":
        parser.error("this program forks and kills as Linux does")
    begin = time.monotonic()
    faults = choose_faults(args)
    with tempfile.TemporaryDirectory(prefix="mutants") as folder:
        trees = [Path(folder) / f"tree{number}" for number in range(args.processes)]
        copy_tree(trees[0])
        known = args.map is not None and args.map.exists()
        paths = json.loads(args.map.read_text(encoding="utf-8")) if known else passed_through(trees[0], args.processes)
        for tree in trees[1:]:
            shutil.copytree(trees[0], tree, symlinks=True)
        if not known:
            check_without_faults(paths, trees)
            if args.map:
                args.map.write_text(json.dumps(paths), encoding="utf-8")
        results = plant(faults, paths, trees, args.out)
    return report(results, time.monotonic() - begin)


# --- choosing ----------------------------------------------------------------------------------------------------


def choose_faults(args: argparse.Namespace) -> list[Fault]:
    """Return the faults to plant: so many of each file as it has places for them, and the aimed ones."""
    files = args.files or product_files()
    if args.survivors_of:
        before = {tuple(row["fault"][name] for name in ("file", "function", "old", "new"))
                  for row in json.loads(args.survivors_of.read_text(encoding="utf-8"))
                  if row["fate"] in ("survived", "untested")}
        everything = [fault for file in files for fault in places(file)] + aimed(files)
        return list({fault.key: fault for fault in everything if fault.key in before}.values())
    drawn: list[Fault] = []
    if args.only != "aimed":
        by_file = {file: places(file) for file in files}
        total = sum(len(found) ** 0.5 for found in by_file.values())
        for file, found in by_file.items():  # a long file has more, but not in proportion
            size = min(len(found), max(round(args.number * len(found) ** 0.5 / total), FEWEST))
            drawn += random.Random(f"{args.seed} {file}").sample(found, size)
    return drawn + (aimed(files) if args.only != "drawn" else [])


# --- planting --------------------------------------------------------------------------------------------------


def copy_tree(tree: Path) -> None:
    """Copy what git tracks, and what it does not ignore, as it is now."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True,
                           capture_output=True, encoding="utf-8").stdout
    for file in filter(None, files.split("\0")):
        if (ROOT / file).exists():
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tree / file)


def check_without_faults(paths: dict, trees: list[Path]) -> None:
    """Run all tests as they meet a fault, but without one; end the program if one fails."""
    files = sorted({test.split("::")[0] for test in paths["fixtures"]})
    for result in plant([Fault(file, 0, "none", 0, "", "") for file in files], paths, trees, None):
        if result.fate != "survived":
            raise SystemExit(f"{result.by or result.fault.file} fails without any fault")


def plant(faults: list[Fault], paths: dict, trees: list[Path], out: Path | None) -> list[Result]:
    """Plant every fault and run its tests; write what becomes of each to `out` as it comes."""
    tests, results = PassingTests(paths), []
    context = multiprocessing.get_context("spawn")
    tasks, done = context.SimpleQueue(), context.SimpleQueue()
    workers = [context.Process(target=work, args=(tree, tasks, done)) for tree in trees]
    for worker in workers:
        worker.start()
    order = sorted(faults, key=lambda fault: sum(map(ord, fault.file + fault.old)) % 97)  # not file by file
    waiting = iter(order)
    for _ in range(len(trees) + 1):
        send(next(waiting, None), tests, tasks)
    with tqdm(total=len(order), unit=" faults", disable=None) as bar:
        while len(results) < len(order):
            result = Result(**done.get())
            result.fault = Fault(**result.fault)
            results.append(result)
            for noticed in ((result.fault.file, result.by), result.by):
                tests.kills[noticed] += result.fate == "noticed"
            if out is not None:
                out.write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")
                if result.fate in ("survived", "untested"):
                    bar.write(f"{result.fate}: {describe(result.fault)}")
            bar.update()
            send(next(waiting, None), tests, tasks)
    for _ in trees:
        tasks.put(None)
    for worker in workers:
        worker.join()
    return results


def send(fault: Fault | None, tests: PassingTests, tasks: object) -> None:
    """Hand a fault and its tests to the workers."""
    if fault is not None:
        chosen = tests.of(fault)
        expected = sum(tests.seconds[test] for test in chosen) + sum(
            tests.seconds.get(name, 0.0) for name in {name for test in chosen for name in tests.fixtures[test]})
        tasks.put((asdict(fault), chosen, 3 * expected + SLACK_S))


def work(tree: Path, tasks: object, done: object) -> None:
    """Take faults from a queue until None comes; a child process runs the tests of each."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    os.chdir(tree)
    sys.path[:] = [str(tree), *(path for path in sys.path if Path(path).resolve() not in (ROOT, ROOT / "benchmarks"))]
    import matplotlib.pyplot  # noqa: F401  what tests need is imported once
    import numba  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.csv
    import pyarrow.parquet  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch.distributed  # noqa: F401

    clock = int(time.time())
    while (task := tasks.get()) is not None:
        fault, chosen, limit_s = task
        path, begin = tree / fault["file"], time.monotonic()
        kept, times = path.read_text(encoding="utf-8"), path.stat()
        start = fault["start"]
        assert kept[start:start + len(fault["old"])] == fault["old"]
        path.write_text(kept[:start] + fault["new"] + kept[start + len(fault["old"]):], encoding="utf-8")
        clock += 10  # so that nobody takes what was compiled of another fault
        os.utime(path, (clock, clock))
        try:
            compiled = path.stem.endswith(("kernels", "loops"))
            fate, by = run_tests(chosen, limit_s, compiled) if chosen else ("untested", "")
        finally:
            path.write_text(kept, encoding="utf-8")
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        done.put({"fault": fault, "fate": fate, "by": by, "seconds": round(time.monotonic() - begin, 1)})


def run_tests(chosen: list[str], limit_s: float, compiled: bool) -> tuple[str, str]:
    """Run tests in a child process until one fails; return the fault's fate, and by which test."""
    with tempfile.TemporaryDirectory(prefix="planted") as folder:
        verdict = Path(folder) / "verdict"
        child = os.fork()
        if not child:
            os.setsid()
            code = 1
            try:
                code = in_child(chosen, Path(folder), verdict, compiled)
            finally:
                os._exit(code)
        end = time.monotonic() + limit_s
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "hung", ""
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what the tests have left running
        said = json.loads(verdict.read_text(encoding="utf-8")) if verdict.exists() else {"code": 1, "by": "crash"}
        return ("survived", "") if said["code"] == 0 else ("noticed", said["by"])


def in_child(chosen: list[str], folder: Path, verdict: Path, compiled: bool) -> int:
    """Run the tests; write their verdict."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    if compiled:  # and leave what was compiled of the sound file as it is
        import numba
        os.environ["NUMBA_CACHE_DIR"] = numba.config.CACHE_DIR = str(folder / "numba")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]  # tests of benchmarks import those of the copy
    phases = [phase for phase in hypothesis.Phase if phase.name in ("explicit", "generate")]  # one failure is enough
    hypothesis.settings.register_profile("planted", phases=phases, database=None)
    hypothesis.settings.load_profile("planted")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    first, code = FirstFailure(), 0
    for tests in (chosen[:FIRST_TESTS], chosen[FIRST_TESTS:]):  # collecting all takes longer than running the first
        if tests and not code:
            code = pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "tmp")],
                               plugins=[first])
    verdict.write_text(json.dumps({"code": int(code), "by": first.by or f"exit code {int(code)}"}),
                       encoding="utf-8")
    return 0


class FirstFailure:
    """A pytest plugin: which test failed."""

    by = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.by:
            self.by = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.by:
            self.by = f"{report.nodeid} cannot be collected"


# --- report ----------------------------------------------------------------------------------------------------


def describe(fault: Fault) -> str:
    """Return a fault on one line."""
    old, new = (" ".join(text.split()) for text in (fault.old, fault.new))
    return f"{fault.file}:{fault.line} {fault.function or 'module'}: {fault.what or f'{old}  ->  {new}'}"


def report(results: list[Result], seconds: float) -> int:
    """Print the table by file, the survivors, and one line of JSON."""
    explained = {}
    if (ROOT / EXPLAINED).exists():
        for entry in tomllib.loads((ROOT / EXPLAINED).read_text(encoding="utf-8"))["survivor"]:
            explained[tuple(entry[name] for name in ("file", "function", "old", "new"))] = entry["reason"]
    print(f"{'file':<42}{'planted':>8}{'noticed':>8}{'hung':>6}{'survived':>9}{'of them explained':>19}")
    rows = collections.defaultdict(lambda: np.zeros(5, int))
    for result in results:
        fate = result.fate.replace("untested", "survived")
        row = [1, fate == "noticed", fate == "hung", fate == "survived",
               fate == "survived" and result.fault.key in explained]
        kind = "aimed by hand" if result.fault.function == "aimed" else "drawn"
        for name in (result.fault.file, f"~ {kind}", "~~ all"):
            rows[name] += row
    for name in sorted(rows):
        print(f"{name.lstrip('~ '):<42}" + "".join(f"{number:>{width}}" for number, width in
                                                   zip(rows[name], (8, 8, 6, 9, 19), strict=True)))
    for result in results:
        if result.fate in ("survived", "untested"):
            print(f"{describe(result.fault)}\n    {explained.get(result.fault.key, 'NOT EXPLAINED')}")
    total = rows["~~ all"].tolist()
    print(json.dumps({"planted": total[0], "noticed": total[1] + total[2], "survived": total[3], "explained": total[4],
                      "noticed_share": round((total[1] + total[2]) / max(total[0], 1), 4), "seconds": round(seconds)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
