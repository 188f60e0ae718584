"""Kill the commands at random moments, and train for long: what is on disk stays whole, memory and files stay flat.

    python benchmarks/soak.py --kills 201 --minutes 12

Makes a small synthetic data set in a temporary folder. Kills (SIGKILL) are dealt to preprocessing, training with
--resume, and rec.py --all_users. After each, the output must be the old one or the new one, whole; what was killed any
number of times must end with the weights and the lists of what never was. The long run trains 100 epochs, which
main.py's schedule would end earlier, and looks at the process after each.
Prints a table, then one line of JSON; exit code 1 if a promise was broken. For Linux.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import psutil
import torch

import main
import rec
from models.checkpoint import load_checkpoint, save_checkpoint
from models.ops.ranks import ALONE
from preprocessing import netflix_preprocess, synthetic_netflix
from preprocessing.dataset import FILES, read_meta
from training import build, report
from training.batches import load_dataset

MODEL = ["--embedding_dim", "32", "--ensemble_size", "2", "--hidden_dim", "32", "--num_threads", "1", "--no-refit"]
EPOCHS = 4  # of a run that is killed; enough that most kills hit one

# Forked, so that a kill falls into the work and not into the imports.
context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)


class Broken(Exception):
    """A promise was not kept."""


def run() -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=201, help="over all commands, a third each (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="end after this time at the latest (%(default)s)")
    parser.add_argument("--epochs", type=int, default=100, help="of the long run; 0 for none (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    args = parser.parse_args()
    if sys.platform != "linux":
        parser.error("this program forks and kills as Linux does")
    end, code = time.monotonic() + 60 * args.minutes, 0
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place, chance, results = Path(folder), random.Random(args.seed), {}
        quietly(synthetic_netflix.main, ["--out_dir", f"{place}/raw", "--num_users", "1500", "--num_movies", "150",
                                         "--num_ratings", "90000"])
        quietly(netflix_preprocess.main, ["--raw_dir", f"{place}/raw", "--out_dir", f"{place}/data"])
        stages = {}
        targets = [kill_preprocessing, kill_training, kill_all_users]
        for target in targets:
            stages[target.__name__.replace("_", " ")] = (
                lambda target=target: target(place, chance, args.kills // len(targets), end))
        if args.epochs:  # last, for this process has no threads until then: to fork one that has may never return
            stages["long run"] = lambda: train_for_long(place, args.epochs, end + 120)
        for name, stage in stages.items():
            try:
                results[name] = stage()
            except Broken as error:
                results[name], code = {"broken": str(error)}, 1
            print(f"{name:<20} " + ", ".join(f"{key} {value}" for key, value in results[name].items()), flush=True)
    print(json.dumps(results))
    return code


def kill_preprocessing(place: Path, chance: random.Random, kills: int, end: float) -> dict:
    """Kill preprocessing while it replaces one data set by another."""
    out, whole = place / "replaced", []
    commands = [["--raw_dir", f"{place}/raw", "--out_dir", str(out), "--seed", seed] for seed in ("0", "1")]
    for command in commands:
        seconds = quietly(netflix_preprocess.main, command)
        whole.append({name: (out / name).read_bytes() for name in FILES})
    counts = {"kills": 0, "finished before": 0, "old": 0, "new": 0}
    held = whole[1]
    while counts["kills"] < kills and time.monotonic() < end:
        number = chance.randrange(2)
        counts["kills" if killed(netflix_preprocess.main, commands[number], chance.random() * seconds)
               else "finished before"] += 1
        found = {name: (out / name).read_bytes() for name in FILES}
        if found not in (held, whole[number]) or {path.name for path in out.iterdir()} != set(FILES):
            raise Broken("the data set is neither the old one nor the new one")
        counts["old" if found == held else "new"] += 1
        held = found
    quietly(netflix_preprocess.main, commands[0])
    if [path.name for path in place.glob(".replaced*")]:
        raise Broken("a killed run left something that the next one did not remove")
    return counts


def kill_training(place: Path, chance: random.Random, kills: int, end: float) -> dict:
    """Kill training again and again, going on with --resume; compare each run's end with that of a whole run."""
    fingerprint = read_meta(place / "data")["fingerprint"]

    def command(run_dir: Path) -> list[str]:
        return ["--data_dir", f"{place}/data", "--run_dir", str(run_dir), "--epochs", str(EPOCHS), *MODEL]

    seconds = quietly(main.main, command(place / "whole"))
    whole, run_dir = load_checkpoint(place / "whole" / "last.pt", fingerprint)["model"], place / "cut"
    counts = {"kills": 0, "runs that ended": 0, "of them equal to a whole run": 0}
    while (counts["kills"] < kills and time.monotonic() < end) or run_dir.exists():
        resume = ["--resume"] if (run_dir / "last.pt").exists() else []
        moment = chance.random() * seconds if counts["kills"] < kills and time.monotonic() < end else 600
        was_killed = killed(main.main, [*command(run_dir), *resume], moment)
        for name in ("last.pt", "best.pt"):
            if (run_dir / name).exists():
                load_checkpoint(run_dir / name, fingerprint)  # raises if it is not whole
        counts["kills"] += was_killed
        if not was_killed:
            last = load_checkpoint(run_dir / "last.pt", fingerprint)["model"]
            best = load_checkpoint(run_dir / "best.pt", fingerprint)["model"]
            whole_best = load_checkpoint(place / "whole" / "best.pt", fingerprint)["model"]
            counts["runs that ended"] += 1
            if not all(torch.equal(last[name], whole[name]) and torch.equal(best[name], whole_best[name])
                       for name in whole):
                raise Broken("a run that was killed ended with other weights than one that was not")
            counts["of them equal to a whole run"] += 1
            shutil.rmtree(run_dir)
    return counts


def kill_all_users(place: Path, chance: random.Random, kills: int, end: float) -> dict:
    """Kill rec.py again and again while it writes all users' lists, which the next call goes on with."""
    quietly(main.main, ["--data_dir", f"{place}/data", "--run_dir", f"{place}/served", "--epochs", "1", *MODEL])
    out = place / "lists.parquet"
    counts = {"kills": 0, "files that were finished": 0, "of them equal to a whole one": 0}
    command = ["--data_dir", f"{place}/data", "--run_dir", f"{place}/served", "--all_users", "--out", str(out)]
    seconds = quietly(rec.main, command)
    whole = out.read_bytes()
    out.unlink()
    while counts["kills"] < kills and time.monotonic() < end:
        counts["kills"] += killed(rec.main, command, chance.random() * seconds)
        if out.exists():  # it appears whole or not at all
            counts["files that were finished"] += 1
            if out.read_bytes() != whole:
                raise Broken("the file of lists of a run that was killed is not that of one that was not")
            counts["of them equal to a whole one"] += 1
            out.unlink()
    return counts


def train_for_long(place: Path, epochs: int, end: float) -> dict:
    """Train many epochs in this process, writing what main.py writes; look at memory and open files after each."""
    args = main.parse_args(["--data_dir", f"{place}/data", "--run_dir", f"{place}/long", "--patience", "1000", *MODEL])
    args.run_dir.mkdir()
    data = load_dataset(args.data_dir)
    trainer = build.build_trainer(args, data, torch.device("cpu"), ALONE)
    trainer.num_epochs = epochs
    rss, files = [], []
    for _ in trainer.epochs():
        checkpoint = trainer.checkpoint(data.meta["fingerprint"])
        save_checkpoint(args.run_dir / "best.pt", checkpoint)
        save_checkpoint(args.run_dir / "last.pt", checkpoint | trainer.state_dict())
        report.write_metrics(args.run_dir / "metrics.csv", trainer.metrics)
        load_checkpoint(args.run_dir / "best.pt", data.meta["fingerprint"])
        rss.append(psutil.Process().memory_info().rss / 2**20)
        files.append(psutil.Process().num_fds())
        if time.monotonic() > end:
            break
    growth = rss[-1] / rss[0] - 1
    if growth > 0.01 or files[-1] > files[0]:
        raise Broken(f"memory grew by {growth:.2%} after the first epoch, open files from {files[0]} to {files[-1]}")
    return {"epochs": len(rss), "MiB after the first": round(rss[0], 1), "after the last": round(rss[-1], 1),
            "largest": round(max(rss), 1), "growth": f"{growth:.2%}", "open files": f"{files[0]} to {files[-1]}"}


def killed(command: object, argv: list[str], seconds: float) -> bool:
    """Start a command in a process, kill it after some seconds; return False if it had ended by itself."""
    process = context.Process(target=child, args=(command, argv))
    process.start()
    process.join(seconds)
    was_running = process.is_alive()
    if was_running:
        process.kill()
    process.join()
    if not was_running and process.exitcode:
        raise Broken(f"exit code {process.exitcode} of {' '.join(argv)}")
    return was_running


def child(command: object, argv: list[str]) -> None:
    """Run a command silently and end the process with its exit code."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os._exit(command(argv))


def quietly(command: object, argv: list[str]) -> float:
    """Run a command to its end in a process of its own; return its seconds."""
    start = time.perf_counter()
    if killed(command, argv, 600):
        raise Broken(f"10 minutes were not enough for {' '.join(argv)}")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(run())
