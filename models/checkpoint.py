"""Checkpoints: `last.pt` (everything a resumed run needs) and `best.pt` (the model that validation chose).

A checkpoint is a dict of tensors and plain values:
    format, fingerprint (of the data set), config (ModelConfig as a dict), item_based (whether there are item-based
    towers), settings (of training), flags (of the run, as main.py was given them; of its data set the folder:
    data_dir, absolute, and data_dir_given, as it was typed), epoch, train_s (seconds of training), calibrated (whether
    `Trainer.calibrate` has been called), refit (whether validation ratings were trained on), model (state dict);
    last.pt also: engines (state of the optimizers), metrics (rows of metrics.csv), best_epoch, best_rmse.
It has the rows of all users; each of many ranks takes those of its own from it (how they get there:
training/gathering.py). It is replaced whole. It is read with `weights_only=True`: it cannot run code. Before anything
of it is used, the CRC-32 of every part of the archive is checked, and that the tensors are those of its config.
"""

import contextlib
import mmap
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from models.blend import Blend
from models.config import PARTS, ModelConfig
from preprocessing.dataset import CutShort, DataError, locked, replaced

FORMAT = 20
STARS = ("stars_low", "stars_high", "stars_mean")  # of the config, which may lie below 0
DATA_DIRS = ("data_dir", "data_dir_given")  # among the flags
PRIVATE = getattr(mmap, "MAP_PRIVATE", None)  # None on Windows, which replaces no file that is mapped: none is there
DAMAGE = (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, TypeError, LookupError, AttributeError,
          ArithmeticError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error)  # what a bad file makes raise


def model_entries(model: Blend) -> dict:
    """Return what a checkpoint holds of a model; its tensors are the model's own."""
    return {**model.description(), "model": model.state_dict()}


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint so that `path` holds either the old one or the new one, whole, at any moment."""
    try:
        with replaced(path) as partial, open(partial, "xb") as file:
            torch.save({"format": FORMAT, **checkpoint}, file)
    except RuntimeError as error:  # torch's word for a write that the system cut short
        raise CutShort(f"{path} cannot be written (is the disk full?)") from error


def load_checkpoint(path: Path, fingerprint: str | None) -> dict:
    """Read a checkpoint that belongs to a data set; None for any. Its tensors lie in the file until they are used.

    Raises:
        DataError: the file is missing, damaged, of another format, or of another data set; says what to do.
    """
    return _load(path, fingerprint)[0]


def load_model(path: Path, fingerprint: str | None) -> tuple[Blend, dict]:
    """Read a checkpoint, and return its model in evaluation mode and the checkpoint; raises as `load_checkpoint`."""
    checkpoint, model = _load(path, fingerprint)
    model.load_state_dict(checkpoint["model"], assign=True)
    return model.eval(), checkpoint


def data_dir_of(path: Path, checkpoint: dict) -> Path:
    """Return the folder of the data set that a checkpoint was trained on: where it was, else where its name leads now.

    Raises:
        DataError: it is not there any more.
    """
    places = [Path(checkpoint["flags"][name]) for name in DATA_DIRS if name in checkpoint["flags"]]
    found = next((place for place in places if (place / "meta.json").exists()), None)
    if found is None:
        raise DataError(f"the data set of {path.parent} is not in {places[0]} any more; name its folder with --data_dir"
                        if places else f"{path} does not say where its data set lies; name its folder with --data_dir")
    return found


def check_data_set(path: Path, checkpoint: dict, fingerprint: str) -> None:
    """Raise DataError unless a checkpoint was trained on the data set of a fingerprint."""
    if checkpoint["fingerprint"] != fingerprint:
        raise DataError(f"{path} was trained on another data set (fingerprint {checkpoint['fingerprint'][:12]}, here "
                        f"{fingerprint[:12]}); name the right one with --data_dir, or run: python main.py --run_dir "
                        f"{path.parent} --overwrite")


def _load(path: Path, fingerprint: str | None) -> tuple[dict, Blend]:
    """Return a checkpoint and the model of its config, whose tables are yet to be filled."""
    train = f"python main.py --run_dir {path.parent}"
    try:
        _check_archive(path)
        with (warnings.catch_warnings(action="ignore"),  # about what is refused anyway
              contextlib.nullcontext() if PRIVATE is None
              else torch.serialization.set_default_mmap_options(PRIVATE)):  # written over in memory alone
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=PRIVATE is not None)
        checkpoint.get("format")
    except FileNotFoundError:
        raise DataError(f"{path} not found; run: {train}") from None
    except DAMAGE:
        raise DataError(f"{path} is damaged or no checkpoint; run: {train} --overwrite") from None
    try:
        model = _empty_model(checkpoint, path.stat().st_size)
    except DAMAGE:
        raise DataError(f"{path} is no checkpoint of this version; run: {train} --overwrite") from None
    if fingerprint is not None:
        check_data_set(path, checkpoint, fingerprint)
    return checkpoint, model


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Make a run's folder, if need be, and hold it for this process; the lock vanishes with the process.

    A folder that is still empty at the end is removed, with the parents that were made for it.

    Raises:
        DataError: another process is training in the folder, or it is a file.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise DataError(f"{run_dir} is a file; name a folder with --run_dir")
    new_folders = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]  # the innermost first
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run_dir / ".lock", f"another run is working in {run_dir}; wait for it, or name another --run_dir"):
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty: there are checkpoints
            for folder in new_folders:
                folder.rmdir()


def _check_archive(path: Path) -> None:
    """Raise ValueError or zipfile.BadZipFile unless a checkpoint is a plain archive that claims no more than it holds,
    every part with its CRC-32."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.filename.endswith("constants.pkl")
               for entry in entries):
            raise ValueError("compressed, or TorchScript, which is code")
        if sum(entry.file_size for entry in entries) > path.stat().st_size or archive.testzip() is not None:
            raise ValueError("damaged")


def _empty_model(checkpoint: dict, num_bytes: int) -> Blend:
    """Build the model of a checkpoint's config, whose tables are yet to be filled; raise ValueError, or whatever the
    first use of a wrong value raises, unless the checkpoint's tensors are those of it.

    The sizes of the config are believed only as far as the file has a byte for each number that they imply.
    """
    types: dict[str, type | tuple[type, ...]] = {
        "fingerprint": str, "config": dict, "item_based": bool, "settings": dict, "flags": dict,
        "epoch": int, "train_s": (int, float), "calibrated": bool, "refit": bool, "model": dict}
    if checkpoint["format"] != FORMAT or not all(isinstance(checkpoint[name], kind) for name, kind in types.items()):
        raise ValueError("format")
    if not all(isinstance(checkpoint["flags"].get(name, ""), str) for name in DATA_DIRS):
        raise ValueError("flags")
    config, item_based = checkpoint["config"], checkpoint["item_based"]
    numbers = {name: value for name, value in config.items() if name != "without"}
    if not all(type(value) in (int, float) and (0 if name not in STARS else -2**48) <= value < 2**48
               for name, value in numbers.items()) or not all(part in PARTS for part in config["without"]):
        raise ValueError("config")
    names = ("num_users", "num_movies", "user_dim", "embedding_dim", "pooled_dim", "hidden_dim")
    users, movies, user_dim, embedding_dim, pooled_dim, hidden_dim = (int(config[name]) for name in names)
    raters_dim = int(config["raters_dim"])
    sizes = (users * user_dim, (movies + users * item_based) * (embedding_dim + pooled_dim + raters_dim),
             hidden_dim * (user_dim + embedding_dim + pooled_dim + raters_dim) + embedding_dim * raters_dim)
    if config["stars_high"] - config["stars_low"] > num_bytes * config["stars_step"]:
        raise ValueError("stars")
    if min(sizes) < 1 or sum(sizes) + movies * int(config["relevance_dim"]) > num_bytes:
        raise ValueError("sizes")
    with _Unfilled():
        model = Blend(ModelConfig(**config), item_based)
    for name, expected in model.state_dict().items():
        tensor = checkpoint["model"][name]
        if (tensor.shape, tensor.dtype, tensor.stride()) != (expected.shape, expected.dtype, expected.stride()):
            raise ValueError(name)
    return model


class _Unfilled(TorchFunctionMode):
    """Leave the tables of a new model unfilled, random ones and zeros: a checkpoint fills them.

    To build it on the meta device instead would import 800 modules of torch, for 1.5 s.
    """

    def __torch_function__(self, function: Callable, types: object, args: tuple = (),
                           kwargs: dict | None = None) -> object:
        kwargs = kwargs or {}
        if function in (torch.Tensor.normal_, torch.Tensor.uniform_, torch.nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if function in (torch.randn, torch.zeros) else function)(*args, **kwargs)
