"""A run remembers its flags and its data folder: --resume, --eval_only and rec.py need no more than --run_dir."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import main
import rec
from models.checkpoint import save_checkpoint
from training import remembered, report, trainer

FLAGS = ["--embedding_dim", "12", "--ensemble_size", "3", "--hidden_dim", "8", "--epochs", "2", "--patience", "7",
         "--batch_size", "50", "--lr", "0.004", "--seed", "3", "--without", "year", "--blend", "both", "--dropout",
         "0.2", "--relevance_weight", "0.5", "--embedding_l2", "0.1", "--l2", "0.02", "--no-refit"]
MACHINE = ["--num_threads", "1", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "plot_training", lambda path, *_: path.write_bytes(b""))
        yield


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory) -> Path:
    """A run of two epochs, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert main.main(["--data_dir", str(data_dir), "--run_dir", str(folder), *FLAGS, *MACHINE]) == 0
    return folder


@pytest.fixture
def run(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def load(run_dir: Path, name: str = "last.pt") -> dict:
    return torch.load(run_dir / name, weights_only=True)


def said(capsys) -> str:
    printed = capsys.readouterr()
    return printed.out + printed.err


@pytest.mark.parametrize("flags", [
    FLAGS, [], ["--refit", "--blend", "user"],
    ["--embedding_l2", "0", "--l2", "0", "--movie_l2", "0", "--time_l2", "0", "--relevance_weight", "0"],
])
def test_flags_that_a_run_remembers_are_those_that_were_typed(flags):
    args = main.parse_args(flags)
    kept = remembered.flags_of(args, item_based=args.blend == "both")
    args.blend = kept["blend"]  # auto has come to something
    assert main.parse_args(remembered.as_argv(kept)) == args


def test_resume_with_the_run_alone_goes_on_as_if_never_stopped(whole, data_dir, tmp_path, monkeypatch, capsys):
    save, cut = main.save_checkpoint, tmp_path / "cut"

    def stop(path: Path, checkpoint: dict) -> None:
        save(path, checkpoint)
        if path.name == "last.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(main, "save_checkpoint", stop)
    assert main.main(["--data_dir", str(data_dir), "--run_dir", str(cut), *FLAGS, *MACHINE]) == 130
    assert f"go on with: python main.py --run_dir {cut} --resume\n" in said(capsys)
    monkeypatch.setattr(main, "save_checkpoint", save)
    monkeypatch.chdir(tmp_path)
    assert main.main(["--resume", "--run_dir", "cut"]) == 0
    assert "resuming after epoch 1 of up to 2\n" in said(capsys)
    for name in ("last.pt", "best.pt"):
        one, other = load(whole, name), load(cut, name)
        assert one["flags"] == other["flags"] and one["settings"] == other["settings"]
        assert not [key for key, tensor in one["model"].items() if not torch.equal(tensor, other["model"][key])], name


def test_machine_and_mode_are_not_remembered_and_all_else_is(run, data_dir):
    flags, every = load(run)["flags"], vars(main.parse_args([]))
    assert every.keys() - flags.keys() == {"run_dir", "device", "num_threads", "resume", "overwrite", "eval_only"}
    assert flags["data_dir"] == str(data_dir.absolute()) and (flags["refit"], flags["lr"]) == (False, 0.004)


@pytest.mark.parametrize("flag", ["embedding_dim 24", "ensemble_size 2", "hidden_dim 4", "seed 4", "blend user",
                                  "without biases", "relevance_weight 0"])
@pytest.mark.parametrize("mode", ["--resume", "--eval_only"])
def test_what_cannot_change_is_refused_by_both_values(run, flag, mode, capsys):
    was = {name.lstrip("-"): value for name, value in itertools.pairwise(FLAGS) if name.startswith("--")}
    name, value = flag.split()
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert main.main(["--run_dir", str(run), mode, f"--{name}", value]) == 1
    found = re.search(r"error: \S+ was trained with --(\w+) (\S+), not (\S+); leave the flag out", said(capsys))
    assert found[1] == name and found[2] == was[name] and float_or(found[3]) == float_or(value)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def float_or(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def test_what_was_can_be_given_again_also_by_an_old_name(run, capsys):
    again = " ".join(FLAGS).replace("--ensemble_size", "--num_heads").replace("--blend", "--sides").split()
    assert main.main(["--run_dir", str(run), "--resume", *again]) == 0
    assert "in place of" not in said(capsys)


def test_what_can_change_is_taken_and_said_and_remembered(run, capsys):
    assert main.main(["--run_dir", str(run), "--resume", "--epochs", "3", "--lr=0.002", "--refit", "--time_l2", "200",
                      "--movie_l2", "8"]) == 0
    assert "the run goes on with --epochs 3 in place of --epochs 2, --lr 0.002 in place of --lr 0.004, " in (
        text := said(capsys))
    assert "--movie_l2 8.0 in place of --movie_l2 6.0, --refit in place of --no-refit\n" in text
    assert "refit   1" in text and "time_l2" not in text
    last, best = load(run), load(run, "best.pt")
    assert last["epoch"] == 3 and last["flags"]["lr"] == 0.002 and last["flags"]["patience"] == 7
    assert best["refit"] and best["flags"]["refit"] is True


def test_a_default_that_was_is_named(data_dir, tmp_path, capsys):
    assert main.main(["--data_dir", str(data_dir), "--run_dir", str(tmp_path / "run"), "--embedding_dim", "8",
                      "--hidden_dim", "8", "--epochs", "1", "--no-refit", *MACHINE]) == 0
    flags = load(tmp_path / "run")["flags"]
    assert (flags["batch_size"], flags["l2"], flags["blend"]) == (None, None, "user")  # auto, of 400 users
    assert main.main(["--run_dir", str(tmp_path / "run"), "--resume", "--batch_size", "64", "--blend", "auto"]) == 0
    assert "the run goes on with --batch_size 64 in place of the default\n" in said(capsys)


def test_a_finished_run_says_that_nothing_is_left_and_is_not_fitted_again(run, monkeypatch, capsys):
    assert main.main(["--run_dir", str(run), "--resume", "--refit"]) == 0
    text = said(capsys)
    assert "nothing is left to train after epoch 2; a larger --epochs may go on\n" in text and "refit   1" in text
    kept = load(run, "best.pt")["model"]
    assert main.main(["--run_dir", str(run), "--resume", "--refit"]) == 0
    text = said(capsys)
    assert "nothing is left to train" in text and "refit   1" not in text and "two towers" in text
    assert all(torch.equal(tensor, kept[key]) for key, tensor in load(run, "best.pt")["model"].items())
    monkeypatch.setattr(trainer, "planned_epochs", lambda *_: 2)
    assert main.main(["--run_dir", str(run), "--resume", "--epochs", "9"]) == 0
    assert "nothing is left to train after epoch 2; the learning rate has fallen to zero\n" in said(capsys)


def test_eval_only_finds_the_data_set_and_says_which_flags_have_no_effect(run, capsys):
    before = (run / "test_metrics.json").read_bytes()
    assert main.main(["--run_dir", str(run), "--eval_only"]) == 0
    assert (run / "test_metrics.json").read_bytes() == before and "no effect" not in said(capsys)
    assert main.main(["--run_dir", str(run), "--eval_only", "--lr", "1"]) == 0
    assert "--eval_only trains nothing, so these have no effect: --lr 1.0 in place of --lr 0.004" in said(capsys)
    assert (run / "test_metrics.json").read_bytes() == before


def test_rec_finds_the_data_set_of_the_run(run, data_dir, capsys):
    assert rec.main(["--run_dir", str(run)]) == 0
    found = said(capsys)
    assert rec.main(["--run_dir", str(run), "--data_dir", str(data_dir)]) == 0
    assert said(capsys) == found


def move_data(run: Path, **places: str) -> None:
    """Make a run remember its data set elsewhere."""
    for name in ("last.pt", "best.pt"):
        checkpoint = load(run, name)
        save_checkpoint(run / name, checkpoint | {"flags": checkpoint["flags"] | places})


def test_a_data_set_that_is_gone_is_named_with_the_flag_that_helps(run, data_dir, tmp_path, capsys):
    move_data(run, data_dir=str(tmp_path / "gone"), data_dir_given="gone")
    for command, *flags in ((rec,), (main, "--resume"), (main, "--eval_only")):
        assert command.main(["--run_dir", str(run), *flags]) == 1
        sentence = f"error: the data set of {run} is not in {tmp_path}/gone any more; name its folder with --data_dir\n"
        assert said(capsys) == sentence
        assert command.main(["--run_dir", str(run), "--data_dir", str(data_dir), *flags]) == 0
        capsys.readouterr()


def test_a_relative_folder_is_found_from_anywhere_and_where_both_have_moved(run, data_dir, tmp_path, monkeypatch,
                                                                           capsys):
    shutil.copytree(data_dir, tmp_path / "one" / "data")
    shutil.move(run, tmp_path / "one" / "run")
    monkeypatch.chdir(tmp_path / "one")
    assert main.main(["--run_dir", "run", "--data_dir", "data", "--resume", "--epochs", "3"]) == 0
    assert load(Path("run"))["flags"]["data_dir_given"] == "data"
    monkeypatch.chdir(tmp_path)
    assert main.main(["--run_dir", "one/run", "--resume", "--epochs", "4"]) == 0
    assert load(Path("one/run"))["flags"]["data_dir_given"] == "data"
    shutil.move(tmp_path / "one", tmp_path / "two")
    monkeypatch.chdir(tmp_path / "two")
    shutil.copytree(data_dir, "data", dirs_exist_ok=True)
    assert main.main(["--run_dir", "run", "--eval_only"]) == 0
    assert rec.main(["--run_dir", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["kind"] == "user"


def test_another_data_set_in_the_old_place_is_noticed(run, raw_dir, tmp_path, capsys):
    from preprocessing import netflix_preprocess

    assert netflix_preprocess.main(["--raw_dir", str(raw_dir), "--out_dir", str(tmp_path / "new"), "--seed", "9"]) == 0
    move_data(run, data_dir=str(tmp_path / "new"))
    for command, *flags in ((rec,), (main, "--resume"), (main, "--eval_only")):
        capsys.readouterr()
        assert command.main(["--run_dir", str(run), *flags]) == 1
        assert "was trained on another data set" in said(capsys)


@pytest.mark.parametrize("flags", [{"lr": "fast"}, {"epochs": [1, 2]}, {"unheard": 3}, {"data_dir": 3}, {"lr": -1.0}])
def test_flags_that_nobody_could_have_given_are_refused(run, flags, capsys):
    move_data(run, **flags)
    try:
        code = main.main(["--run_dir", str(run), "--resume"])
    except SystemExit as end:
        code = end.code
    assert code in (1, 2) and said(capsys).count("error: ") == 1
