"""A run is loaded quickly: nothing heavy is imported for one list, and nothing that a checkpoint fills is drawn."""

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.checkpoint import FORMAT, load_checkpoint, load_model, save_checkpoint
from models.two_tower import TwoTower
from preprocessing.dataset import DataError, read_meta

ROOT = Path(__file__).resolve().parents[2]


def test_a_list_imports_nothing_heavy_beyond_torch_nor_a_server(data_dir, run_dir):
    """Nor does torch import pandas or matplotlib; nor does rec.py, where there is no file of ratings."""
    heavy = {"pandas", "matplotlib", "numba", "sympy", "scipy", "sklearn", "fastapi", "uvicorn", "pydantic",
             "starlette"}
    program = ("import sys, torch; before = set(sys.modules) - {'pandas', 'matplotlib'}; "
               "import rec; from models.ops import backend; "
               "backend.FEW_RATINGS = -1; "  # as if the user had rated much
               f"place = ['--data_dir', {str(data_dir)!r}, '--run_dir', {str(run_dir)!r}]; "
               "code = rec.main([*place, '--explain']) or rec.main([*place, '--rate', '1:5']); "
               "loaded = {name.split('.')[0] for name in set(sys.modules) - before}; "
               f"sys.exit(code or str(sorted(loaded & {heavy})))")
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.stderr.strip() == "[]", result.stderr


def test_a_loaded_model_equals_the_saved_one_and_draws_no_random_numbers(data_dir, run_dir):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model, checkpoint = load_model(run_dir / "best.pt", read_meta(data_dir)["fingerprint"])
    assert set(model.state_dict()) == set(checkpoint["model"])
    assert all(torch.equal(value, checkpoint["model"][name]) for name, value in model.state_dict().items())
    drawn = torch.get_rng_state()
    torch.set_rng_state(before)
    TwoTower(model.config)
    assert not torch.equal(torch.get_rng_state(), drawn)  # as a new model does


def test_who_writes_over_a_loaded_model_does_not_write_over_its_checkpoint(data_dir, run_dir):
    """Whatever the process has chosen for mapped files: in one way of mapping, what is written goes to the file."""
    best = run_dir / "best.pt"
    before = best.read_bytes()
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        model, _ = load_model(best, read_meta(data_dir)["fingerprint"])
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert best.read_bytes() == before


def test_a_checkpoint_of_another_version_gets_one_sentence(data_dir, run_dir, tmp_path):
    fingerprint = read_meta(data_dir)["fingerprint"]
    checkpoint = dict(load_checkpoint(run_dir / "best.pt", fingerprint))
    save_checkpoint(tmp_path / "best.pt", checkpoint | {"config": checkpoint["config"] | {"unheard_of": 1}})
    with pytest.raises(DataError, match=r"best\.pt is no checkpoint of this version; run: python main\.py"):
        load_checkpoint(tmp_path / "best.pt", fingerprint)
    save_checkpoint(tmp_path / "best.pt", checkpoint | {"format": FORMAT - 1})  # all else being as it is now
    with pytest.raises(DataError, match=r"best\.pt is no checkpoint of this version; run: python main\.py"):
        load_checkpoint(tmp_path / "best.pt", fingerprint)
