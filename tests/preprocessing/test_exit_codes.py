import signal
import threading

import pytest

from preprocessing.dataset import DataError, Terminated, exit_code


def nothing_changed() -> str:
    return "out is as it was"


def failing(error: BaseException):
    def work() -> None:
        raise error

    return work


def test_work_that_is_done_is_0_and_says_nothing(capsys):
    done = []
    assert exit_code(lambda: done.append(1), "out", nothing_changed) == 0
    assert (done, *capsys.readouterr()) == ([1], "", "")


@pytest.mark.parametrize(("error", "sentence", "with_outcome"), [
    (DataError("in.txt, line 3: 'x' is no rating"), "in.txt, line 3: 'x' is no rating", False),
    (DataError("two\nlines \x1b[2J"), "two?lines ?[2J", False),
    (OSError(28, "No space left on device"), "out: the disk is full", True),
    (OSError(28, "No space left on device", "out/a"), "out/a: the disk is full", True),
    (OSError(13, "Permission denied", "in.txt"), "in.txt: Permission denied", True),
    (FileNotFoundError(2, "No such file or directory", "in.txt"), "in.txt: No such file or directory", True),
    (OSError("no number"), "out: no number", True),
    (MemoryError(), "out of memory", True)], ids=repr)
def test_a_failure_is_1_and_one_sentence(capsys, error, sentence, with_outcome):
    assert exit_code(failing(error), "out") == 1
    assert capsys.readouterr() == ("", f"error: {sentence}\n")
    assert exit_code(failing(error), "out", nothing_changed) == 1
    assert capsys.readouterr() == ("", f"error: {sentence}{'; out is as it was' if with_outcome else ''}\n")


def test_a_mistake_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 / 0, "out", nothing_changed)


def test_ctrl_c_is_130(capsys):
    assert exit_code(failing(KeyboardInterrupt()), "out") == 130
    assert exit_code(failing(KeyboardInterrupt()), "out", nothing_changed) == 130
    assert capsys.readouterr() == ("", "\ninterrupted\n\ninterrupted; out is as it was\n")


def test_the_outcome_is_asked_for_after_the_work(capsys):
    written = []

    def work() -> None:
        written.append("epoch 1")
        raise KeyboardInterrupt

    assert exit_code(work, "out", lambda: f"wrote {written}") == 130
    assert capsys.readouterr().err == "\ninterrupted; wrote ['epoch 1']\n"


@pytest.fixture
def older_handler():
    """A handler that counts the SIGTERM which reach it."""
    reached = []
    before = signal.signal(signal.SIGTERM, lambda *_: reached.append(1))
    yield reached
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_143_and_the_older_handler_is_restored(capsys, older_handler):
    cleaned_up = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            cleaned_up.append(1)

    assert exit_code(work, "out", nothing_changed) == 143
    assert capsys.readouterr() == ("", "\ninterrupted; out is as it was\n")
    assert (cleaned_up, older_handler) == ([1], [])
    signal.raise_signal(signal.SIGTERM)
    assert older_handler == [1]


@pytest.mark.parametrize("work", [lambda: None, failing(DataError("x"))], ids=["done", "failed"])
def test_the_older_handler_is_restored_however_the_work_ends(older_handler, work):
    exit_code(work, "out")
    signal.raise_signal(signal.SIGTERM)
    assert older_handler == [1]


def test_in_another_thread_the_handler_of_sigterm_is_left_alone(older_handler):
    codes, handlers = [], []
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: codes.extend([
        exit_code(lambda: handlers.append(signal.getsignal(signal.SIGTERM)), "out"),
        exit_code(failing(MemoryError()), "out"), exit_code(failing(Terminated()), "out")]))
    thread.start()
    thread.join()
    assert (codes, handlers) == ([0, 1, 143], [before])
