"""Imports run one way: main -> training, rec -> recommending; both -> models -> models/ops, preprocessing/dataset."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("preprocessing.dataset", "preprocessing.environment")  # what every stage uses of preprocessing
MAY_IMPORT = {
    "preprocessing": {"preprocessing"},
    "models": {"models", "preprocessing"},
    "models/ops": {"models", "preprocessing"},
    "training": {"training", "models", "preprocessing"},
    "recommending": {"recommending", "models", "preprocessing"},
    "recommending/page": {"recommending", "preprocessing"},
}
READS_TABLES = ("preprocessing/dataset/frames.py", "preprocessing/dataset/tables.py", "recommending/frames.py",
                "recommending/ratings_input.py", "training/report.py")


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
    stages = {"preprocessing", "models", "training", "recommending", "main", "rec", "benchmarks", "notebooks", "tests"}
    for path in (ROOT / stage).glob("*.py"):
        used = {module.split(".")[0] for module in imported_modules(path)} & stages
        assert used <= MAY_IMPORT[stage], path


def test_models_use_only_the_schema_and_reader_of_preprocessing():
    for stage in ("models", "training", "recommending"):
        for path in (ROOT / stage).rglob("*.py"):
            used = {module for module in imported_modules(path) if module.startswith("preprocessing.")}
            assert all(module.startswith(SHARED) for module in used), path


def test_the_commands_are_twins_that_know_only_their_stages():
    for command, stages in (("main.py", {"training", "models", "preprocessing"}),
                            ("rec.py", {"recommending", "preprocessing"})):
        used = {module.split(".")[0] for module in imported_modules(ROOT / command)}
        assert used & {"training", "recommending", "models", "preprocessing", "main", "rec"} <= stages


def test_arithmetic_knows_no_model():
    for path in (ROOT / "models" / "ops").glob("*.py"):
        used = {module for module in imported_modules(path) if module.startswith("models.")}
        assert all(module.startswith("models.ops") for module in used), path


def test_only_the_page_knows_a_server():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("recommending/*.py")]:
        used = {module.split(".")[0] for module in imported_modules(path)}
        assert not used & {"fastapi", "pydantic", "uvicorn"}, path


def test_pandas_is_imported_only_where_a_table_is_read():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py")]:
        if path.relative_to(ROOT).parts[0] not in ("benchmarks", "tests"):
            body = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Import)]
            assert "pandas" not in {alias.name for node in body for alias in node.names}, path
            if "pandas" in {module.split(".")[0] for module in imported_modules(path)}:
                assert path.relative_to(ROOT).as_posix() in READS_TABLES, path
