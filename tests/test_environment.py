"""Every command says how to enter its environment where packages are missing, and draws no bars into log files."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["main.py", "rec.py", "preprocessing/netflix_preprocess.py", "preprocessing/movielens_preprocess.py",
            "preprocessing/table_preprocess.py", "preprocessing/synthetic_netflix.py"]


def bare(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a Python without any package that was installed."""
    return subprocess.run([sys.executable, "-S", *argv], cwd=cwd, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", COMMANDS)
def test_outside_of_the_environment_a_command_says_how_to_enter_it(command, tmp_path):
    result = bare(command, "--help")
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert re.fullmatch(r"error: \S+ has no numpy; enter the environment with: \. \.venv/bin/activate, or install what "
                        r"is needed with: python -m pip install -r requirements\.txt\n", result.stderr)
    elsewhere = bare(str(ROOT / command), cwd=tmp_path)
    assert elsewhere.returncode == 1
    assert f"with: . {ROOT}/.venv/bin/activate, or" in elsewhere.stderr  # which can be typed there
    assert f"-r {ROOT}/requirements.txt\n" in elsewhere.stderr


@pytest.mark.parametrize("command", ["main.py", "rec.py"])
def test_a_python_that_has_all_but_pytorch_says_the_same(command, tmp_path):
    repository = shutil.copytree(ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns(
        ".*", "tests", "benchmarks", "docs", "runs", "demo", "data", "__pycache__"))
    for package in ("numpy", "pyarrow", "tqdm"):
        (repository / f"{package}.py").write_text("")
    result = bare(command, cwd=repository)
    assert result.returncode == 1 and " has no torch; enter the environment with: . .venv/bin/" in result.stderr
    assert result.stderr.count("\n") == 1


def test_who_imports_a_stage_gets_pythons_own_error():
    result = bare("-c", "import recommending.recommender")
    assert result.returncode == 1 and "ModuleNotFoundError: No module named" in result.stderr


def test_bars_stay_out_of_log_files_in_all_commands_alike(tmp_path):
    small = "--embedding_dim 8 --ensemble_size 2 --hidden_dim 8 --epochs 1 --num_threads 1"
    after_another = ("import main, rec, sys; lines = [line.split() for line in sys.argv[1:]]; "  # PyTorch comes once
                     "sys.exit(any({'main': main, 'rec': rec}[name].main(flags) for name, *flags in lines))")
    for command in (["preprocessing/synthetic_netflix.py", "--out_dir", f"{tmp_path}/raw", "--num_users", "60",
                     "--num_movies", "20", "--num_ratings", "900"],
                    ["preprocessing/netflix_preprocess.py", "--raw_dir", f"{tmp_path}/raw", "--out_dir",
                     f"{tmp_path}/data"],
                    ["-c", after_another, f"main --data_dir {tmp_path}/data --run_dir {tmp_path}/run {small}",
                     f"rec --run_dir {tmp_path}/run --all_users --out {tmp_path}/recs.parquet",
                     f"rec --run_dir {tmp_path}/run --export_vectors {tmp_path}/vectors"]):
        result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0 and result.stderr == "" and "\r" not in result.stdout, command
    assert (tmp_path / "recs.parquet").exists() and (tmp_path / "vectors").exists()


def test_every_bar_is_for_terminals_alone():
    for path in [*ROOT.glob("preprocessing/*.py"), *ROOT.glob("training/*.py"), *ROOT.glob("recommending/*.py")]:
        calls = re.findall(r"tqdm\(total=.*?\) as bar", path.read_text(encoding="utf-8"), re.DOTALL)
        assert all("disable=" in call and "None" in call for call in calls), path
