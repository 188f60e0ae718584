"""Threads that share work: what is computed does not depend on them, and no error is lost."""

import threading
import time
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from models.ops.threads import in_threads, shared_out


@pytest.fixture(params=[1, 2, 4])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    with shared_out():
        yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_are_in_order(threads):
    def work(number: int) -> int:
        time.sleep(0.001 * (7 - number))
        return number

    assert in_threads([lambda number=number: work(number) for number in range(7)]) == list(range(7))
    assert in_threads([]) == []


def test_pytorch_has_one_thread_in_each(threads):
    assert in_threads([torch.get_num_threads] * 5) == [1] * 5


def test_tasks_run_side_by_side_where_there_are_threads(threads):
    together = threading.Barrier(threads, timeout=20)
    names = in_threads([lambda: (together.wait(), threading.current_thread().name)[1]] * threads)
    assert len(set(names)) == threads


def test_tasks_share_out_tasks_of_their_own(threads):
    def outer(number: int) -> int:
        return sum(in_threads([lambda part=part: 10 * number + part for part in range(5)]))

    assert in_threads([lambda number=number: outer(number) for number in range(6)]) == [
        50 * number + 10 for number in range(6)]


def test_the_first_error_is_raised_when_all_is_still(threads):
    running, most = [], 6

    def work(number: int) -> None:
        running.append(number)
        time.sleep(0.01)
        running.remove(number)
        if number in (2, 4):
            raise ValueError(f"number {number}")

    with pytest.raises(ValueError, match=r"number [24]"):
        in_threads([lambda number=number: work(number) for number in range(most)])
    assert not running
    assert in_threads([lambda: 1, lambda: 2]) == [1, 2]


@pytest.mark.parametrize("with_grad", [True, False])
def test_gradients_are_recorded_as_in_the_thread_that_asks(threads, with_grad):
    with torch.set_grad_enabled(with_grad):
        assert in_threads([torch.is_grad_enabled] * 6) == [with_grad] * 6


def test_what_a_task_held_is_let_go_while_others_still_wait(threads):
    """Tasks of tasks that no thread was free for stay in a queue; the tensors that they would have worked on do not."""
    alive: list[weakref.ref] = []
    largest = []

    def inner(tensor: torch.Tensor) -> int:
        return len(tensor)

    def outer() -> None:
        tensors = [torch.zeros(3) for _ in range(4)]
        alive.extend(map(weakref.ref, tensors))
        assert in_threads([partial(inner, tensor) for tensor in tensors]) == [3] * 4
        del tensors
        largest.append(sum(one() is not None for one in alive))

    in_threads([outer] * 50)
    assert max(largest) <= 8 * threads
