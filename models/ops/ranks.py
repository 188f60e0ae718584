"""Share work out among processes: `torchrun --nproc_per_node=N main.py ...`, gloo on CPUs and NCCL on GPUs.

Users are dealt to ranks in ranges of about equally many ratings. In training a rank loads its users' ratings only and
is alone in updating their rows of the user table; what travels in a step is the sum of the shared parameters'
gradients. Because everything random is drawn alike on all ranks, or hashed from ids, N ranks compute what one would.
"""

import contextlib
import datetime
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed as dist

from preprocessing.dataset import CutShort, DataError

SMALL = 2**16  # numbers of a tensor that travels with others
LIMIT_S = 1800  # that a rank waits for the others at a meeting, unless the environment's RANK_TIMEOUT_S says otherwise:
# at ten times Netflix's size, all of a test took one process 349 s, and between two steps of an epoch less than one
MOST_S = 10**7


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
        marks = offset[-1] * np.arange(1, self.size) / self.size
        bounds = np.concatenate([[0], np.searchsorted(offset, marks), [len(offset) - 1]])
        return int(bounds[self.rank]), int(bounds[self.rank + 1])

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
