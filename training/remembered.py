"""What a run remembers of its flags: they lie in its checkpoints, and --resume and --eval_only take them up again."""

import argparse
from pathlib import Path

from models.blend import item_based_helps
from models.checkpoint import DATA_DIRS
from preprocessing.dataset import DataError

OF_THE_CALL = ("run_dir", "device", "num_threads", "resume", "overwrite", "eval_only")  # are not remembered
OF_THE_MODEL = ("embedding_dim", "ensemble_size", "hidden_dim", "without", "blend", "seed")  # stay as they were


def flags_of(args: argparse.Namespace, item_based: bool) -> dict:
    """Return the flags of a run for its checkpoint, as plain values; `item_based` is what --blend has come to.

    The data set is there twice: `data_dir` from the root of the disk, and `data_dir_given` as it was typed.
    """
    flags = {name: value for name, value in vars(args).items() if name not in OF_THE_CALL}
    return {"data_dir_given": str(args.data_dir), **flags, "data_dir": str(args.data_dir.absolute()),
            "blend": blend_of(item_based)}


def flags_in(checkpoint: dict) -> dict:
    """Return a checkpoint's flags; of what the model consists of, its config has the last word."""
    names = ("embedding_dim", "ensemble_size", "hidden_dim", "dropout", "without")
    of_model = {name: checkpoint["config"][name] for name in names}
    return {**checkpoint["flags"], **of_model, "blend": blend_of(checkpoint["item_based"])}


def as_argv(flags: dict) -> list[str]:
    """Return flags as somebody would type them."""
    argv = []
    for name, value in flags.items():
        if isinstance(value, bool):
            argv.append(f"--{name}" if value else f"--no-{name}")
        elif value not in (None, (), []) and name not in DATA_DIRS:
            argv.append(f"--{name}={','.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    return argv


def compare(before: argparse.Namespace, now: argparse.Namespace, checkpoint: dict, path: Path) -> str:
    """Say which flags are given and are not those of the run, "" if none is; an `auto` of --blend is replaced by what
    it means.

    Args:
        before: the flags of the run.
        now: the same with those that are given.
        checkpoint, path: of the run.

    Raises:
        DataError: one that cannot change.
    """
    config, changes = checkpoint["config"], []
    if now.blend == "auto":
        now.blend = blend_of(item_based_helps(config["num_users"], config["num_movies"]))
    for name in vars(before):
        was, given = getattr(before, name), getattr(now, name)
        if name in OF_THE_CALL or name in DATA_DIRS or was == given:
            continue
        if name in OF_THE_MODEL or (name == "relevance_weight" and bool(was) != bool(given)):
            was, given = (",".join(value) or "nothing" if name == "without" else value for value in (was, given))
            raise DataError(f"{path} was trained with --{name} {was}, not {given}; leave the flag out, or start anew "
                            "in another --run_dir")
        given, was = (" ".join(as_argv({name: value})).replace("=", " ") for value in (given, was))
        changes.append(f"{given} in place of {was or 'the default'}")
    return ", ".join(changes)


def blend_of(item_based: bool) -> str:
    """Return what --blend has come to."""
    return "both" if item_based else "user"
