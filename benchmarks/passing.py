"""Which tests pass through a line of the product: found by one run of the suite under coverage. See mutants.py.

What a fixture passes through that tests share, all of these tests pass through. Coverage sees nothing of compiled
loops: they are passed through by whoever passes through a function of their module, or of the one that calls it.
"""

import ast
import collections
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import coverage
import pytest
from tqdm import tqdm

from benchmarks.faults import ROOT, Fault

GOLDEN = "tests/test_golden.py"  # which sees most of what is changed
BUDGET_S = 45.0  # of tests that a fault meets, as they took without it
COMPILED = {"compiled", "jit"}  # decorators below which coverage sees nothing
CALLED_BY = {"models/ops/numba_loops.py": "models/ops/numba_kernels.py"}  # compiled functions of a module, by another


class Watch:
    """A pytest plugin: which lines of the product each test passes through, or each fixture that tests share."""

    def __init__(self, root: Path, out: Path) -> None:
        self.out, self.seconds, self.fixtures, self.bad, self.now = out, {}, {}, [], ["between"]
        self.of_fixtures_s = 0.0  # in all
        self.coverage = coverage.Coverage(data_file=None, source=[str(root)], omit=["tests/*", "benchmarks/*"],
                                          config_file=False)
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: object, request: pytest.FixtureRequest) -> object:
        if fixturedef.scope == "function":
            return (yield)
        begin, name = time.monotonic(), f"fixture {fixturedef.baseid} {fixturedef.argname}"
        self.now.append(name)
        self.coverage.switch_context(name)
        try:
            return (yield)
        finally:
            took = time.monotonic() - begin
            self.seconds[name] = max(self.seconds.get(name, 0.0), took)  # of one parameter
            self.now.pop()
            if len(self.now) == 1:  # else a part of another fixture's
                self.of_fixtures_s += took
            self.coverage.switch_context(self.now[-1])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        self.now[0] = item.nodeid
        self.coverage.switch_context(item.nodeid)
        begin, shared_s = time.monotonic(), self.of_fixtures_s
        result = yield
        took = time.monotonic() - begin - (self.of_fixtures_s - shared_s)
        self.seconds[item.nodeid] = max(took, 0.0)
        self.fixtures[item.nodeid] = [f"fixture {one.baseid} {one.argname}"
                                      for found in item._fixtureinfo.name2fixturedefs.values() for one in found[-1:]
                                      if one.scope != "function"]
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.bad.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data, lines = self.coverage.get_data(), {}
        for file in data.measured_files():
            lines[file] = dict(data.contexts_by_lineno(file))
        self.out.write_text(json.dumps({"lines": lines, "seconds": self.seconds, "fixtures": self.fixtures,
                                        "bad": self.bad}), encoding="utf-8")


def passed_through(tree: Path, processes: int) -> dict:
    """Run the suite once in a copy of the tree; return what tests pass through which lines, and how long they take.

    Test files are dealt to processes; a test that fails without any fault ends the program.
    """
    print("running the suite under coverage", flush=True)
    files = sorted(str(path.relative_to(tree)) for path in (tree / "tests").rglob("test_*.py"))
    pool = multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=1)
    with pool:
        parts = list(tqdm(pool.imap_unordered(watch, [(tree, file) for file in files]), total=len(files),
                          unit=" files", disable=None))
    whole: dict = {"lines": {}, "seconds": {}, "fixtures": {}}
    for part in parts:
        if part["bad"]:
            raise SystemExit(f"tests fail without any fault: {', '.join(part['bad'])}")
        for file, lines in part["lines"].items():
            into = whole["lines"].setdefault(str(Path(file).relative_to(tree)), {})
            for line, names in lines.items():
                into.setdefault(line, []).extend(names)
        for test, names in part["fixtures"].items():
            whole["fixtures"][test] = names
        for name, seconds in part["seconds"].items():
            whole["seconds"][name] = max(seconds, whole["seconds"].get(name, 0.0))
    return whole


def watch(task: tuple[Path, str]) -> dict:
    """Run a test file under `Watch`, in a process of its own."""
    tree, file = task
    with tempfile.TemporaryDirectory(prefix="watch") as folder:
        out = Path(folder) / "paths.json"
        code = ("import sys; from pathlib import Path; sys.path.insert(0, '.'); import pytest; "
                "from benchmarks import passing; "
                f"pytest.main([{file!r}, '-q', '-p', 'no:cacheprovider', '--basetemp', {folder + '/tmp'!r}], "
                f"plugins=[passing.Watch(Path({str(tree)!r}), Path({str(out)!r}))])")
        done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=os.environ | {"OMP_NUM_THREADS": "1"},
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")
        if not out.exists():
            raise SystemExit(f"{file} cannot be run:\n{done.stdout[-2000:]}")
        return json.loads(out.read_text(encoding="utf-8"))


class PassingTests:
    """Finds the tests for a fault."""

    def __init__(self, paths: dict) -> None:
        self.seconds, self.kills = paths["seconds"], collections.Counter()
        users = collections.defaultdict(list)  # of a fixture, the tests
        for test, fixtures in paths["fixtures"].items():
            for name in fixtures:
                users[name].append(test)
        self.fixtures = paths["fixtures"]
        self.tests: dict[str, dict[int, set[str]]] = {}
        for file, lines in paths["lines"].items():
            self.tests[file] = {int(line): {test for name in names for test in users.get(name, [name])} & set(
                self.fixtures) for line, names in lines.items()}
        self.bodies = {file: bodies(file) for file in self.tests}

    def of(self, fault: Fault) -> list[str]:
        """Return the tests that pass through a fault, as far as the budget goes: first the quick ones, and those that
        are likely to notice it or have noticed others."""
        if not fault.line:
            return [test for test in self.fixtures if test.startswith(f"{fault.file}::")]
        found = self._through(fault)
        likely = Path("tests") / Path(fault.file).parent / f"test_{Path(fault.file).stem}"

        def cost(test: str) -> float:
            seconds = self.seconds[test] + sum(self.seconds.get(name, 0.0) for name in self.fixtures[test]) / 10
            promise = 10 if test.startswith((str(likely), GOLDEN)) else 1
            return seconds / promise / (1 + 20 * self.kills[fault.file, test] + 2 * self.kills[test])

        turns: collections.Counter = collections.Counter()  # of a test function, its parameters one by one
        order = {}
        for test in sorted(found, key=cost):
            turns[test.split("[")[0]] += 1
            order[test] = cost(test) * turns[test.split("[")[0]]
        chosen, spent, ready = [], 0.0, set()
        for test in sorted(found, key=order.get):
            new = set(self.fixtures[test]) - ready
            spent += self.seconds[test] + sum(self.seconds.get(name, 0.0) for name in new)
            if chosen and spent > BUDGET_S:
                break
            ready |= new
            chosen.append(test)
        return chosen

    def _through(self, fault: Fault) -> set[str]:
        lines, inner = self.tests.get(fault.file, {}), self.bodies.get(fault.file, {})
        span = range(fault.line, fault.line + fault.old.count("\n") + 1)
        if all(inner.get(line) == "run" for line in span):
            return set().union(*(lines.get(line, set()) for line in span))
        if not any(inner.get(line) for line in span):  # of the module: whoever passes where its name is used
            text = (ROOT / fault.file).read_text(encoding="utf-8").splitlines()[fault.line - 1]
            if name := re.match(r"\s*(\w+)(:[^=]+)? = ", text):
                uses = re.compile(rf"\b{name[1]}\b")
                found: set[str] = set()
                for file, body in self.bodies.items():
                    for number, line in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), start=1):
                        if body.get(number) == "run" and uses.search(line):
                            found |= self.tests[file].get(number, set())
                if found:
                    return found
        caller = CALLED_BY.get(fault.file, fault.file)
        lines, inner = self.tests.get(caller, {}), self.bodies.get(caller, {})
        return set().union(*(tests for line, tests in lines.items() if inner.get(line) == "run"), set())


def bodies(file: str) -> dict[int, str]:
    """Return of each line in a function's body "run", or "compiled" where coverage sees nothing of it."""
    found: dict[int, str] = {}
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            compiled = any(word in ast.unparse(decorator) for decorator in node.decorator_list for word in COMPILED)
            for line in range(node.body[0].lineno, node.end_lineno + 1):
                found[line] = "compiled" if compiled or found.get(line) == "compiled" else "run"
    return found
