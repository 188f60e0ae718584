"""The faults that benchmarks/mutants.py plants: that they are faults, and that those kept by hand still stand."""

import ast
import random
import tomllib

import pytest

from benchmarks import faults, mutants
from benchmarks.faults import ROOT, Fault, aimed, changes, places, product_files
from benchmarks.passing import PassingTests


@pytest.mark.parametrize(("code", "expected"), [
    ("a < b", {"(a <= b)"}),
    ("a + b * c", {"(a - b * c)", "(a)", "(b * c)"}),
    ("not a", {"(a)"}),
    ("a and b", {"(a or b)", "(a)"}),
    ("a if b else c", {"(a)", "(c)"}),
    ("7", {"8", "6"}),
    ("0.5", {"1.0"}),
    ("True", {"False"}),
    ("f(a, key=b)", {"(f(a))"}),
    ("x.clamp(a)", {"(x)"}),
    ("max(a, b)", {"(min(a, b))"}),
])
def test_an_expression_has_these_faults(code, expected):
    assert set(changes(ast.parse(code, mode="eval").body, "")) == expected


@pytest.mark.parametrize("code", ["x += 1", "f(a)", "raise ValueError(a)"])
def test_a_statement_can_be_left_out(code):
    assert list(changes(ast.parse(code).body[0], "")) == ["pass"]


def test_every_fault_changes_its_file_and_is_still_python():
    for file in product_files():
        text = (ROOT / file).read_text(encoding="utf-8")
        found = places(file)
        for fault in random.Random(file).sample(found, min(len(found), 12)):
            assert text[fault.start:fault.start + len(fault.old)] == fault.old != fault.new
            ast.parse(text[:fault.start] + fault.new + text[fault.start + len(fault.old):])


def test_faults_aimed_by_hand_and_survivors_explained_still_stand():
    files = product_files()
    known = {fault.key for file in files for fault in places(file)} | {fault.key for fault in aimed(files)}
    for entry in tomllib.loads((ROOT / mutants.EXPLAINED).read_text(encoding="utf-8"))["survivor"]:
        assert tuple(entry[name] for name in ("file", "function", "old", "new")) in known
        assert entry["reason"]


def test_a_fault_meets_the_tests_that_pass_through_it_also_by_a_shared_fixture(tmp_path, monkeypatch):
    (tmp_path / "main.py").write_text("LIMIT = 3\ndef f(x):\n    return x + LIMIT\n\ndef g(x):\n    return x\n")
    monkeypatch.setattr("benchmarks.passing.ROOT", tmp_path)
    paths = {"lines": {"main.py": {"3": ["t::one", "fixture made"], "6": ["t::two"]}},
             "seconds": {"t::one": 2.0, "t::two": 0.1, "t::three": 1.0, "fixture made": 5.0},
             "fixtures": {"t::one": [], "t::two": [], "t::three": ["fixture made"]}}
    tests = PassingTests(paths)
    assert tests.of(Fault("main.py", 3, "f", 0, "x + LIMIT", "(x)")) == ["t::three", "t::one"]
    assert tests.of(Fault("main.py", 6, "g", 0, "x", "y")) == ["t::two"]
    assert tests.of(Fault("main.py", 1, "", 0, "3", "4")) == ["t::three", "t::one"]  # of where its name is used


def test_an_aimed_fault_whose_text_is_gone_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "rec.py").write_text("a = 1\n")
    (tmp_path / "aimed.toml").write_text("[[fault]]\nfile = 'rec.py'\nwhat = 'w'\nold = 'b = 1'\nnew = 'b = 2'\n")
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    monkeypatch.setattr(faults, "AIMED", "aimed.toml")
    with pytest.raises(SystemExit, match="stands 0 times"):
        aimed(["rec.py"])
