"""Checkpoints: `last.pt` (everything a resumed run needs) and `best.pt` (the model that validation chose).

A checkpoint is a dict of tensors and plain values:
    format, fingerprint (of the data set), config (ModelConfig as a dict), settings (flags of the run), epoch,
    train_s (seconds of training), refit (whether validation ratings were trained on), model (state dict), and what
    would else be computed for a single query: films (Films as a dict) and movie_vectors, float (P, M);
    last.pt also: optimizers, user_rows, metrics (rows of metrics.csv), best_epoch, best_rmse.
It is written to a temporary file, synced and renamed, and read with `weights_only=True`: it cannot run code.
"""

import os
import pickle
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from models.two_tower import ModelConfig, TwoTower
from preprocessing.dataset import DataError

FORMAT = 2


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint so that `path` holds either the old one or the new one, whole, at any moment."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            torch.save({"format": FORMAT, **checkpoint}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, fingerprint: str, map_location: torch.device | str = "cpu") -> dict:
    """Read a checkpoint that belongs to a data set.

    Raises:
        DataError: the file is missing, damaged, of another format, or of another data set; says what to do.
    """
    train = f"python main.py --run_dir {path.parent}"
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except FileNotFoundError:
        raise DataError(f"{path} not found; run: {train}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError):
        raise DataError(f"{path} is damaged or no checkpoint; run: {train} --overwrite") from None
    if (not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT
            or not set(checkpoint["config"]) <= set(ModelConfig.__dataclass_fields__)):
        raise DataError(f"{path} is no checkpoint of this version; run: {train} --overwrite")
    if checkpoint["fingerprint"] != fingerprint:
        raise DataError(f"{path} was trained on another data set (fingerprint {checkpoint['fingerprint'][:12]}, here "
                        f"{fingerprint[:12]}); name the right one with --data_dir, or run: {train} --overwrite")
    return checkpoint


def model_entries(model: TwoTower) -> dict:
    """Return a checkpoint's entries that describe a model; puts it into evaluation mode."""
    with torch.no_grad():
        films = model.eval().films()
    return {"config": model.config_dict(), "model": model.state_dict(), "films": vars(films),
            "movie_vectors": films.rows.flatten(1).T.contiguous()}


def model_of(checkpoint: dict) -> TwoTower:
    """Build the model of a checkpoint, in evaluation mode."""
    with _NoRandomNumbers():
        model = TwoTower(ModelConfig(**checkpoint["config"]))
    model.load_state_dict(checkpoint["model"], assign=True)
    return model.eval()


class _NoRandomNumbers(TorchFunctionMode):
    """Leave the random tables of a new model unfilled: what a checkpoint fills need not be drawn.

    (Building it on the meta device instead would import another 1.5 s of Python.)
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.normal_:
            return args[0]
        return function(*args, **(kwargs or {}))
