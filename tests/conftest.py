"""A small synthetic data set and a run trained on it, made once for all tests that need one."""

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels of a GPU run in Triton's interpreter, for their own tests

import main
from preprocessing import dataset, netflix_preprocess, synthetic_netflix
from preprocessing.dataset import writer

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """What is written is on the disk at once, for no test can cut the power; those of a sync itself replace it anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which refuses what is no open file, too
        yield


@pytest.fixture(scope="session")
def raw_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    synthetic_netflix.generate(folder, num_users=400, num_movies=90, num_ratings=14_000, seed=1)
    return folder


@pytest.fixture(scope="session")
def data_dir(raw_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "processed"
    assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def many_groups(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set with a row group for every 30 users, so that there is something to interrupt."""
    folder = tmp_path_factory.mktemp("groups") / "processed"
    shutil.copytree(data_dir, folder)
    users, file = dataset.read_users(data_dir), dataset.RatingsFile(data_dir)
    borders = [*users.offset[:-1:30].tolist(), int(users.offset[-1])]
    with writer.ratings_writer(folder, file.schema) as parquet:
        for start, stop in itertools.pairwise(borders):
            writer.write_ratings(parquet, next(file.read_rows(slice(start, stop))))
    writer.write_meta(folder, dataset.read_meta(data_dir))
    return folder


@pytest.fixture(scope="session")
def train() -> Callable[..., int]:
    """Return main.py's command with a model small enough for tests, and without a second fit."""

    def command(data_dir: Path, run_dir: Path, *flags: str) -> int:
        return main.main(["--data_dir", str(data_dir), "--run_dir", str(run_dir), "--embedding_dim", "16",
                          "--ensemble_size", "2", "--hidden_dim", "16", "--num_threads", "1", "--no-refit", *flags])

    return command


@pytest.fixture(scope="session")
def run_dir(train: Callable[..., int], data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert train(data_dir, folder, "--epochs", "12", "--batch_size", "16") == 0
    return folder


@pytest.fixture
def no_display() -> Iterator[None]:
    """Matplotlib's backend is one that needs a display, as MPLBACKEND=tkagg asks for, and there is none."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    class FigureCanvas(FigureCanvasAgg):
        def __init__(self, figure: object) -> None:
            raise RuntimeError("no display")

    before, module = matplotlib.get_backend(), ModuleType("needs_display")
    module.FigureCanvas = FigureCanvas
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        matplotlib.use(f"module://{module.__name__}")
        yield
        matplotlib.use(before)
