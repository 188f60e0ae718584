"""Put the rows of all ranks' users together while a checkpoint is written.

A rank has the rows of its own users: their embeddings, and the state of their optimizer. A checkpoint has those of all,
so that any number of ranks can go on from it. For it the ranks send theirs to the main one, block by block, which
writes them to files on the disk of the run and maps these: it never has more than a block of them in memory of its own.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from models.ops.ranks import Ranks
from training.engine import Engine
from training.trainer import Trainer


@contextlib.contextmanager
def rows_of_all(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Let the main rank's tables of users be those of all ranks meanwhile; all ranks must come here.

    Args:
        folder: on a disk with room for these rows, beside the checkpoint.

    Raises:
        DataError: another process of the run has ended.
        OSError: the disk is full.
    """
    with contextlib.ExitStack() as stack:
        for engine in trainer.engines if trainer.ranks.size > 1 else ():
            own = {"embedding": engine.model.user_embedding, **engine.user_rows.state}
            whole = {name: stack.enter_context(_whole(table, folder, trainer.ranks)) for name, table in own.items()}
            if trainer.ranks.is_main:
                stack.callback(_take, engine, own)
                _take(engine, whole)
        yield


def _take(engine: Engine, tables: dict[str, torch.Tensor]) -> None:
    """Replace an engine's tables of users."""
    engine.model.user_embedding = tables["embedding"]
    engine.user_rows.state = {name: tables[name] for name in engine.user_rows.state}


@contextlib.contextmanager
def _whole(table: torch.Tensor, folder: Path, ranks: Ranks) -> Iterator[torch.Tensor]:
    """Yield, on the main rank, the rows of all ranks' tables (n, D), which lie in a file; the others send theirs."""
    blocks = ranks.rows_of_all(table)
    if not ranks.is_main:
        for _ in blocks:
            pass
        yield table
        return
    with tempfile.TemporaryFile(dir=folder) as file:  # without a name: gone with the process, however that ends
        for block in blocks:
            file.write(block.numpy().data)
        file.flush()
        yield torch.from_numpy(np.memmap(file, np.float32, "c").reshape(-1, *table.shape[1:]))
