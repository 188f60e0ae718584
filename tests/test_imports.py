"""Imports run one way: rec, main -> training -> models -> preprocessing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "preprocessing": {"preprocessing"},
    "models": {"models", "preprocessing"},
    "training": {"training", "models", "preprocessing"},
}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


@pytest.mark.parametrize("stage", MAY_IMPORT)
def test_imports_run_one_way(stage):
    stages = {"preprocessing", "models", "training", "main", "rec", "benchmarks", "tests"}
    for path in (ROOT / stage).glob("*.py"):
        used = {module.split(".")[0] for module in imported_modules(path)} & stages
        assert used <= MAY_IMPORT[stage], path


def test_models_use_only_the_schema_and_reader_of_preprocessing():
    for stage in ("models", "training"):
        for path in (ROOT / stage).glob("*.py"):
            used = {module for module in imported_modules(path) if module.startswith("preprocessing.")}
            assert all(module.startswith("preprocessing.dataset") for module in used), path


def test_commands_do_not_import_pandas():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py")]:
        if path.parent.name not in ("benchmarks", "tests"):
            assert "pandas" not in {module.split(".")[0] for module in imported_modules(path)}, path
