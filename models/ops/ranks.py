"""Share work out among processes: `torchrun --nproc_per_node=N main.py ...`, gloo on CPUs and NCCL on GPUs.

Users are dealt to ranks in ranges of about equally many ratings. In training a rank loads its users' ratings only and
is alone in updating their rows of the user table; what travels in a step is the sum of the shared parameters'
gradients. Because everything random is drawn alike on all ranks, or hashed from ids, N ranks compute what one would.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed as dist

from preprocessing.dataset import DataError

SMALL = 2**16  # numbers of a tensor that travels with others


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
            DataError: another process of the run has ended.
        """
        if self.size == 1:
            return
        small: dict[torch.dtype, list[torch.Tensor]] = {}
        for tensor in tensors:
            if tensor.numel() <= SMALL:
                small.setdefault(tensor.dtype, []).append(tensor)
        packs = [torch.cat([tensor.reshape(-1) for tensor in some]) for some in small.values()]
        large = [tensor for tensor in tensors if tensor.numel() > SMALL]
        self._together(lambda: [dist.all_reduce(tensor, async_op=True) for tensor in [*packs, *large]],
                       "the last checkpoint is kept, go on from it with --resume")
        for pack, some in zip(packs, small.values(), strict=True):
            for tensor, total in zip(some, pack.split([tensor.numel() for tensor in some]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def wait(self) -> None:
        """Wait until all ranks are here.

        Raises:
            DataError: another process has ended.
        """
        if self.size > 1:
            self._together(lambda: [dist.barrier(async_op=True)], "the same command goes on from what is done")

    def _together(self, begin: Callable[[], list[dist.Work]], advice: str) -> None:
        """Begin what all ranks take part in, and wait for its end."""
        try:
            for work in begin():
                work.wait()
        except RuntimeError:
            raise DataError(f"rank {self.rank} stops because another process of the run has ended; {advice}") from None


ALONE = Ranks()


def start() -> Ranks:
    """Join the run that torchrun has started, if it has; every process of it must call this."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    ranks = Ranks(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return ranks


def leave(code: int) -> None:
    """End this process with an exit code; one of many at once, for tearing communication down can abort it."""
    if dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
