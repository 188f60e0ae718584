"""Share work out among processes: `torchrun --nproc_per_node=N main.py ...`, gloo on CPUs and NCCL on GPUs.

Users are dealt to ranks in ranges of about equally many ratings. A rank has the ratings and the rows of its own users
alone; what travels in a step is the sum of the shared parameters' gradients, and for a checkpoint the rows. Because
everything random is drawn alike on all ranks, or hashed from ids, N ranks compute what one would.
"""

import contextlib
import datetime
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import distributed as dist

from preprocessing.dataset import CutShort, DataError

SMALL = 2**16  # numbers of a tensor that travels with others
LIMIT_S = 1800  # that a rank waits for the others at a meeting, unless the environment's RANK_TIMEOUT_S says otherwise:
# at ten times Netflix's size, all of a test took one process 349 s, and between two steps of an epoch less than one
MOST_S = 10**7
BLOCK_ROWS = 2**16  # of a table, that travel at once


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run; a run of one process needs no launcher."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def user_range(self, offset: np.ndarray) -> tuple[int, int]:
        """Return the first user of this rank and the one after its last, from the users' offsets (U + 1,)."""
        first, last = np.searchsorted(offset[:-1], self.bounds(offset[-1]))
        return int(first), int(last)

    def bounds(self, num_ratings: int) -> tuple[float, float]:
        """Return from which rating on, of so many, the first ratings of this rank's users are, and before which."""
        return (num_ratings * self.rank / self.size,
                num_ratings * (self.rank + 1) / self.size if self.rank + 1 < self.size else math.inf)

    def sum_(self, *tensors: torch.Tensor) -> None:
        """Replace tensors by their sums over the ranks; small ones of a type travel as one, which takes half the time.

        Raises:
            CutShort: another process of the run has ended, or does not answer.
        """
        if self.size == 1:
            return
        small: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor.numel() <= SMALL:
                small.setdefault(tensor.dtype, []).append(tensor)
        packs = [torch.cat([tensor.reshape(-1) for tensor in some]) for some in small.values()]
        large = [tensor for tensor in tensors if tensor.numel() > SMALL]
        self._together(lambda: [dist.all_reduce(tensor, async_op=True) for tensor in [*packs, *large]])
        for pack, some in zip(packs, small.values(), strict=True):
            for tensor, total in zip(some, pack.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def numbers(self, own: int) -> list[int]:
        """Return a number of each rank, given that of this one."""
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = own
        self.sum_(numbers)
        return numbers.tolist()

    def rows_of_all(self, table: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield, on the main rank, the rows of the tables (n, D) of all ranks in their order, in blocks on the CPU; the
        others yield nothing, but send theirs, and must exhaust it too.

        Raises:
            CutShort: another process of the run has ended, or does not answer.
        """
        for rank, size in enumerate(self.numbers(len(table))):
            if not self.is_main and rank != self.rank:
                continue
            for start in range(0, size, BLOCK_ROWS):
                if rank == self.rank:
                    block = table[start:start + BLOCK_ROWS].cpu()
                else:
                    block = table.new_empty(min(size - start, BLOCK_ROWS), *table.shape[1:], device="cpu")
                if rank != 0:
                    self._together(partial(_travel, block, rank, self.is_main))
                if self.is_main:
                    yield block

    def wait(self) -> None:
        """Wait until all ranks are here.

        Raises:
            CutShort: another process has ended, or does not answer.
        """
        if self.size > 1:
            self._together(lambda: [dist.barrier(async_op=True)])

    def _together(self, begin: Callable[[], list[dist.Work]]) -> None:
        """Begin what all ranks take part in, and wait for its end."""
        try:
            for work in begin():
                work.wait()
        except RuntimeError as error:
            late = re.search("time(d )?out", str(error), re.IGNORECASE)
            raise CutShort(f"rank {self.rank} stops because another process of the run "
                           + (f"has not answered for {_limit_s():g} s" if late else "has ended")) from None


def _travel(block: torch.Tensor, sender: int, is_main: bool) -> list[dist.Work]:
    """Begin to receive a block on the main rank, or to send it there."""
    work = dist.irecv(block, sender) if is_main else dist.isend(block, 0)
    return [] if work is None else [work]


ALONE = Ranks()


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the run that torchrun has started, if it has, for what all of its processes do.

    Raises:
        CutShort: the others do not come.
    """
    if _world_size() == 1:
        yield ALONE
        return
    ranks = Ranks(int(os.environ["RANK"]), _world_size(), int(os.environ["LOCAL_RANK"]))
    try:
        _meet(ranks)
        yield ranks
    except DataError:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun asks the others to end when one has: they say why
        raise


def launcher() -> str:
    """Return what the run was started by, as one types it before the name of the script."""
    size = _world_size()
    if size == 1:
        return "python"
    if int(os.environ.get("LOCAL_WORLD_SIZE", size)) == size:
        return f"torchrun --nproc_per_node={size}"
    return "torchrun, with its flags as before,"


def _world_size() -> int:
    """Return how many processes torchrun has started, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _meet(ranks: Ranks) -> None:
    """Find the other processes of the run."""
    limit = datetime.timedelta(seconds=_limit_s())
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=limit)
    except RuntimeError as error:
        reason = (str(error).splitlines() or ["no reason"])[0]
        raise CutShort(f"rank {ranks.rank} stops because the {ranks.size} processes of the run have not found each "
                       f"other within {_limit_s():g} s ({reason})") from None


def _limit_s() -> float:
    """Return the seconds that a rank waits for the others, each time that they meet."""
    text = os.environ.get("RANK_TIMEOUT_S", str(LIMIT_S))
    with contextlib.suppress(ValueError):
        if 1 <= float(text) <= MOST_S:
            return float(text)
    raise DataError(f"RANK_TIMEOUT_S is {text!r}, and must be a number of seconds from 1 to {MOST_S:,}")


def leave(code: int) -> None:
    """End this process with an exit code; one of many at once, for tearing communication down can abort it."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
