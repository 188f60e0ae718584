"""Train the two towers on a processed data set, choose the epoch by validation, fit them once more to training and
validation ratings together where these are not too many, and measure the result once on test.

    python main.py --epochs 100 --batch_size 128 --lr 0.001
    python main.py --resume                # go on after Ctrl-C or a crash, with the flags and the data set of the run
    python main.py --eval_only             # only measure the best checkpoint again
    torchrun --nproc_per_node=2 main.py    # the same with two processes

Reads --data_dir (made by preprocessing/netflix_preprocess.py). Writes into --run_dir: last.pt and best.pt
(checkpoints), metrics.csv (a row per epoch), training.png, test_metrics.json.
"""

import argparse
import contextlib
import dataclasses
import gc
import math
import sys
import typing
from pathlib import Path

import models  # noqa: F401 - it says what to do where packages are missing, before they are imported
from models.ops import compiling

if __name__ == "__main__" and not {"-h", "--help"} & set(sys.argv):
    compiling.start()

# isort: split
import torch

from models.checkpoint import DAMAGE, data_dir_of, load_checkpoint, load_model, lock_run, model_entries, save_checkpoint
from models.config import PARTS, ModelConfig
from models.ops import ranks as processes
from models.ops.ranks import Ranks
from models.ops.threads import shared_out
from preprocessing.dataset import DataError, exit_code
from training import remembered, report
from training.batches import DataSet, load_dataset
from training.build import build_trainer, choose_device
from training.engine import Settings
from training.evaluation import fold_in_movies
from training.gathering import rows_of_all
from training.trainer import EpochMetrics, Trainer

OLD_PARTS = {"solved_history": "fold_in", "drift": "movie_bias_over_time", "mood": "recent_user_bias"}
REFIT_RATINGS = 10_000_000  # of training: with more, a second fit is made only where it is asked for


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code: 0 done, 1 the work failed, 130 Ctrl-C, 143 SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)

    last = args.run_dir / "last.pt"
    replaced = last.stat().st_mtime_ns if args.overwrite and last.exists() else None

    def outcome() -> str:
        if args.eval_only:
            return "the same command measures again"
        if last.exists() and last.stat().st_mtime_ns != replaced:
            return f"go on with: {processes.launcher()} main.py --run_dir {args.run_dir} --resume"
        state = "nothing was written" if replaced is None else "the run before is kept"
        return f"no epoch was finished, {state}; the same command begins anew"

    return exit_code(lambda: work(args, argv), args.run_dir, outcome)


def work(args: argparse.Namespace, argv: list[str]) -> None:
    """Join the other processes, if there are any, and do what the flags ask for."""
    with processes.joined() as ranks, lock_run(args.run_dir) if ranks.is_main else contextlib.nullcontext():
        if args.resume or args.eval_only:
            args = recall(args, argv, ranks)
        run(args, ranks)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data/processed"), metavar="DIR",
                        help="processed data set (default: %(default)s)")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/default"), metavar="DIR",
                        help="folder of the run (default: %(default)s)")
    add_flags(parser, Settings)
    add_flags(parser, ModelConfig)
    blends = ("auto", "user", "both")
    parser.add_argument("--blend", choices=blends, default="auto", help="both: user-based towers and item-based ones, "
                        "whose movies are folded in from their ratings (default: auto, both where there are at most 4 "
                        "users per movie)")
    parser.add_argument("--sides", choices=blends, dest="blend", help=argparse.SUPPRESS)
    parser.add_argument("--without", type=parse_parts, default=(), metavar="PARTS",
                        help=f"leave parts of the model out, comma separated, of: {', '.join(PARTS)}")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto",
                        help="auto takes the GPU where there is one (default: auto)")
    parser.add_argument("--num_threads", type=int, metavar="I", help="CPU threads (default: one per core)")
    parser.add_argument("--refit", action=argparse.BooleanOptionalAction,
                        help="train again with the validation ratings, for the epochs that validation chose, which "
                        f"takes as long as these (default: up to {REFIT_RATINGS // 10**6} million training ratings)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --run_dir, with its flags and "
                        "its data set; a flag that is given is taken or refused by name")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --run_dir")
    parser.add_argument("--eval_only", action="store_true", help="measure best.pt on test again, train nothing")
    args = parser.parse_args(argv)
    for name in ("epochs", "batch_size", "patience", "embedding_dim", "ensemble_size", "hidden_dim", "num_threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}")
    if (args.embedding_dim or 0) % args.ensemble_size and not (args.resume or args.eval_only):
        parser.error(f"--embedding_dim {args.embedding_dim} must be a multiple of --ensemble_size "
                     f"{args.ensemble_size}")
    if not (math.isfinite(args.lr) and args.lr > 0):
        parser.error(f"--lr must be above 0, not {args.lr}")
    if not 0 <= args.dropout < 1:
        parser.error(f"--dropout must be at least 0 and below 1, not {args.dropout}")
    for name in ("l2", "movie_l2", "embedding_l2", "time_l2", "relevance_weight"):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) < math.inf:
            parser.error(f"--{name} must be at least 0, not {getattr(args, name)}")
    if not 0 <= args.seed < 2**40:
        parser.error(f"--seed must be a whole number from 0 to 2^40 - 1, not {args.seed}")
    if args.resume and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite replaces it: choose one")
    return args


def add_flags(parser: argparse.ArgumentParser, settings: type) -> None:
    """Add a flag for every field of a dataclass that has a help text, and its old name (see `models.config.flag`)."""
    for field in dataclasses.fields(settings):
        if "help" in field.metadata:
            kind = next(kind for kind in (int, float) if kind in (field.type, *typing.get_args(field.type)))
            default = "" if field.default is None else " (default: %(default)s)"
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, metavar=kind.__name__[0].upper(),
                                help=field.metadata["help"] + default)
            if field.metadata["old_name"]:
                parser.add_argument(f"--{field.metadata['old_name']}", type=kind, dest=field.name,
                                    default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def parse_parts(text: str) -> tuple[str, ...]:
    """Read names of parts of the model, separated by commas; return them in the order of PARTS."""
    named = [OLD_PARTS.get(part, part) for part in text.split(",")]
    for part in named:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"there is no part {part!r}; choose of {', '.join(PARTS)}")
    return tuple(part for part in PARTS if part in named)


def recall(args: argparse.Namespace, argv: list[str], ranks: Ranks) -> argparse.Namespace:
    """Return the flags of the run in --run_dir, with those that are given and can change.

    Raises:
        DataError: there is no run, one of the flags cannot change, or the data set is not where it was.
    """
    path = args.run_dir / ("best.pt" if args.eval_only else "last.pt")
    checkpoint = load_checkpoint(path, None)
    of_run = remembered.as_argv(remembered.flags_in(checkpoint))
    before, now = parse_args(of_run), parse_args([*of_run, *argv])
    changes = remembered.compare(before, now, checkpoint, path)
    if changes and ranks.is_main:
        print("--eval_only trains nothing, so these have no effect:" if args.eval_only else "the run goes on with",
              changes, file=sys.stderr)
    if not any(word.partition("=")[0] == "--data_dir" for word in argv):
        now.data_dir = data_dir_of(path, checkpoint)
        now.data_dir_given = checkpoint["flags"].get("data_dir_given", str(now.data_dir))
    return now


def run(args: argparse.Namespace, ranks: Ranks) -> None:
    """Load, train, measure, report; of many processes only the main one reports."""
    if not gc.get_freeze_count():  # what has been imported stays: to look through it for garbage takes .12 s each time
        gc.freeze()
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    device = choose_device(args.device, ranks)
    last, best = args.run_dir / "last.pt", args.run_dir / "best.pt"
    if last.exists() and not (args.resume or args.overwrite or args.eval_only):
        raise DataError(f"{args.run_dir} holds a run already; go on with it by --resume, replace it by --overwrite, "
                        "or name another --run_dir")
    data = load_dataset(args.data_dir, ranks)
    sizes, fingerprint = data.meta["split"], data.meta["fingerprint"]
    if not sizes["num_train"]:
        raise DataError(f"{args.data_dir} has no training ratings; preprocess more ratings")
    if ranks.is_main:
        print(f"{sizes['num_train']:,} training, {sizes['num_validation']:,} validation and {sizes['num_test']:,} test "
              f"ratings of {data.num_users:,} users and {data.num_movies:,} movies; device {device}"
              + (f", {ranks.size} processes" if ranks.size > 1 else ""), flush=True)
    metrics, is_new = ([], False) if args.eval_only else train(args, data, device, ranks)
    baselines = {} if args.eval_only else report.validation_baselines(data, ranks)
    del data  # which later stages load anew, with the validation ratings
    if wants_refit(args.refit, sizes) and not args.eval_only:
        refit(args, device, ranks, is_new)
    ranks.sum_(torch.zeros(1, device=device))  # by then the main process has written best.pt
    model, checkpoint = load_model(best, fingerprint)
    known = load_dataset(args.data_dir, ranks, with_validation=True)
    model.user_based.keep_users(*known.train.owned)
    model = model.to(device)
    if model.item_based is not None and not checkpoint["refit"]:  # which has folded its movies in from all that
        fold_in_movies(model, known, ranks)
        if not args.eval_only and ranks.is_main:
            state = model.state_dict()
            state["user_based.user_embedding"] = checkpoint["model"]["user_based.user_embedding"]  # of all ranks' users
            save_checkpoint(best, checkpoint | {"model": state})
    with shared_out():
        results, calibration = report.test_results(model, known, ranks), report.calibration(model, known, ranks)
    if not ranks.is_main:
        return
    chosen = " as chosen by validation" if sizes["num_validation"] else ", the last: there are no validation ratings"
    print(f"\ntest, {sizes['num_test']:,} ratings, epoch {checkpoint['epoch']}{chosen}"
          + (", fitted again with the validation ratings:" if checkpoint["refit"] else ":"))
    print(report.format_table(results))
    if how_sure := report.format_calibration(calibration):
        print(how_sure)
    if by_others := report.published(known.meta):
        print(f"\n{by_others}")
    report.write_test_metrics(args.run_dir / "test_metrics.json", {
        **results, "calibration": calibration, "best_epoch": checkpoint["epoch"], "refit": checkpoint["refit"],
        "train_s": checkpoint["train_s"]})
    if not args.eval_only:
        report.plot_training(args.run_dir / "training.png", metrics, checkpoint["epoch"], baselines)
        print(f"\nsee {args.run_dir / 'training.png'}; next: python rec.py --run_dir {args.run_dir}")


def train(args: argparse.Namespace, data: DataSet, device: torch.device,
          ranks: Ranks) -> tuple[list[EpochMetrics], bool]:
    """Train until the epochs or the patience are used up; write checkpoints and metrics.csv after every epoch.

    Returns:
        The metrics of every epoch of the run, and whether any of them is of now.
    """
    trainer, fingerprint = build_trainer(args, data, device, ranks), data.meta["fingerprint"]
    if args.resume:
        resume(args, trainer, fingerprint)
    elif ranks.is_main:
        print(f"up to {trainer.num_epochs} epochs, {trainer.engines[0].batch_size:,} users a step", flush=True)
    done, flags = len(trainer.metrics), remembered.flags_of(args, trainer.model.item_based is not None)
    for metrics in trainer.epochs():
        is_best = trainer.best_epoch == metrics.epoch
        with rows_of_all(trainer, args.run_dir):
            if not ranks.is_main:
                continue
            save(args.run_dir, trainer, trainer.checkpoint(fingerprint, flags), is_best)
        report.write_metrics(args.run_dir / "metrics.csv", trainer.metrics)
        validation = (f"validation {metrics.val_rmse:.4f} {'*' if is_best else ' '}" if trainer.has_validation
                      else f"{'no validation':<19}")
        print(f"epoch {metrics.epoch:>3}  train {metrics.train_rmse:.4f}  {validation} {metrics.seconds:6.1f} s  "
              f"{metrics.ratings_per_s:11,.0f} ratings/s", flush=True)
    if trainer.has_validation:
        calibrate(args.run_dir, trainer, fingerprint)
    return trainer.metrics, len(trainer.metrics) > done


def calibrate(run_dir: Path, trainer: Trainer, fingerprint: str) -> None:
    """Calibrate the model of the best epoch, unless that has been done, and replace best.pt."""
    trainer.ranks.sum_(torch.zeros(1, device=trainer.model.device))  # by then the main process has written best.pt
    chosen = load_checkpoint(run_dir / "best.pt", fingerprint)
    if chosen["calibrated"]:
        return
    trainer.calibrate(chosen["model"])
    with rows_of_all(trainer, run_dir):
        if trainer.ranks.is_main:
            save_checkpoint(run_dir / "best.pt", chosen | model_entries(trainer.model.eval()) | {"calibrated": True})


def save(run_dir: Path, trainer: Trainer, checkpoint: dict, is_best: bool) -> None:
    """Write last.pt, and best.pt where this epoch is the best so far."""
    if is_best:
        save_checkpoint(run_dir / "best.pt", checkpoint)
    if checkpoint["epoch"] == 1:  # of a run that is replaced: nobody goes on with it beside this best.pt
        (run_dir / "last.pt").unlink(missing_ok=True)
    save_checkpoint(run_dir / "last.pt", checkpoint | trainer.state_dict())


def resume(args: argparse.Namespace, trainer: Trainer, fingerprint: str) -> None:
    """Put a trainer into the state of last.pt, and say how it goes on; raise DataError where there is none."""
    last = args.run_dir / "last.pt"
    checkpoint = load_checkpoint(last, fingerprint)  # mapped, so that a rank reads its users' rows alone
    try:
        trainer.model.load_rows(checkpoint["model"])
        trainer.load_state_dict(checkpoint)
    except DAMAGE:
        raise DataError(f"{last} holds no state to go on from; start anew with --overwrite") from None
    if trainer.ranks.is_main:
        report.write_metrics(args.run_dir / "metrics.csv", trainer.metrics)  # of which the last row may be missing
        done = len(trainer.metrics)
        if trainer.is_finished:
            more = "patience" if done < trainer.num_epochs else "epochs" if args.epochs <= done else None
            print(f"nothing is left to train after epoch {done}; "
                  + (f"a larger --{more} may go on" if more else "the learning rate has fallen to zero"), flush=True)
        else:
            print(f"resuming after epoch {done} of up to {trainer.num_epochs}", flush=True)


def wants_refit(flag: bool | None, sizes: dict) -> bool:
    """Tell whether there is a second fit, by the flag and the sizes of the splits."""
    wanted = sizes["num_train"] <= REFIT_RATINGS if flag is None else flag
    return wanted and bool(sizes["num_validation"])


def refit(args: argparse.Namespace, device: torch.device, ranks: Ranks, is_new: bool) -> None:
    """Train anew on training and validation ratings, for as many epochs as validation chose; replace best.pt.

    Where that has been done, and no epoch is new since then (`is_new`), nothing is done.
    """
    best = args.run_dir / "best.pt"
    data = load_dataset(args.data_dir, ranks, with_validation=True)
    ranks.sum_(torch.zeros(1, device=device))  # by then the main process has written best.pt
    chosen = load_checkpoint(best, data.meta["fingerprint"])
    if chosen["refit"] and not is_new:
        return
    if ranks.is_main:
        print(f"epoch {chosen['epoch']} was best; as many again with the validation ratings (without: --no-refit)",
              flush=True)
    of_first = argparse.Namespace(**vars(args) | {"embedding_dim": chosen["config"]["embedding_dim"]})
    trainer = build_trainer(of_first, data, device, ranks)
    trainer.folds_in = False  # but for the last: nothing is measured before
    trainer.model.load_chosen(chosen["model"])
    for metrics in trainer.epochs():
        if ranks.is_main:
            print(f"refit {metrics.epoch:>3}  train {metrics.train_rmse:.4f}                       "
                  f"{metrics.seconds:6.1f} s  {metrics.ratings_per_s:11,.0f} ratings/s", flush=True)
        if metrics.epoch == chosen["epoch"]:
            break
    trainer.fold_in_movies()
    flags = remembered.flags_of(args, trainer.model.item_based is not None)
    with rows_of_all(trainer, args.run_dir):
        if ranks.is_main:
            checkpoint = trainer.checkpoint(data.meta["fingerprint"], flags)
            save_checkpoint(best, checkpoint | {"calibrated": True, "refit": True,
                                                "train_s": chosen["train_s"] + checkpoint["train_s"]})


if __name__ == "__main__":
    processes.leave(main())
