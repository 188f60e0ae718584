"""How far training is from what the machine could do at best; used by bench_train.py --floor.

A stage can take no less time than its bytes take at the rate at which the machine copies memory, nor less than its
floating-point operations take at the rate of a large matrix product. Both rates are measured in the same run, and so is
each stage, by a clock around the functions that it consists of.
"""

import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest import mock

import torch

from models import two_tower, user_tower
from models.ops.threads import shared_out
from training import engine as engine_module
from training.batches import CONTEXT_FRACTION, batch_of
from training.engine import Engine

COPY_BYTES = 2**29  # far beyond the caches
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns
REPEATS = 5  # of which the fastest counts
SAMPLE_STEPS = 20  # whose shapes are averaged
WARM_UP_STEPS = 3
REST = "dates, loss"


@dataclass
class StepShape:
    """How large a step is, on average."""

    users: float  # B
    ratings: float  # R
    context: float  # C, of them known
    targets: float  # T, of them asked for
    movies: float  # N, distinct movies


def least_work(engine: Engine, shape: StepShape) -> dict[str, tuple[float, float]]:
    """Return for each stage the (bytes, floating-point operations) of a step that no way of computing it goes without.

    A number has 4 bytes. What a stage reads or writes once per rating counts once per rating, even where a cache serves
    it: so a stage that is served by caches can be faster than this. What is made and used up within a stage counts
    nothing. With E members of D coordinates, D' = D + 1 with the one of the bias, K = E D, F hidden units, U of a
    user's embedding, S of who rated a movie, P pooled, G groups of members, per step of B users, C context and T target
    ratings, R = C + T, and N movies:

        batch assembly   reads 5 bytes a rating as stored, writes user, movie, stars and day: 5 R + 16 R bytes
        movie tower      reads and writes N vectors: 8 N K bytes, reads 4 N S of who rated them; 2 N F (D + 5 + S) + 2 N
                         (F + S) (K + E) operations
        user tower       reads a row of 2 P and 4 numbers a context rating: 4 G C (2 P + 4) bytes; 3 G C P to pool
                         them, and 2 G B F (U + P + 3) + 2 B F E D'
        ridge solve      reads a movie's row with its bias and the target, writes the residuals of the members:
                         4 C E (D' + 2) + 4 C bytes; half of a symmetric product C E (D' + 1) (D' + 2), Cholesky
                         B E D'^3 / 3, two triangles 2 B E D'^2, and the residuals 2 C E D'
        gather-dot       reads a movie's row with its bias, writes a score: 4 T E (D' + 2) bytes; 2 T E D'
                         operations
        backward         reads a movie's and a user's row for a target, a movie's and two of a user for a context
                         rating: 2 (4 T E D') + 3 (4 C E D') bytes; a user's row of P for the pooled tables: 4 G C P
                         bytes; 4 T E D' for the dot, 6 C E D' + 2 B E D'^2 for the solve, 3 G C P, and twice the layers
                         of the towers
        optimizers       SGD with momentum reads and writes table and momentum, reads N rows of gradients: 16 bytes per
                         parameter; Adam 28 bytes per parameter of the shared layers, of B user rows, and of
                         relevance in the steps that train it
        the rest         16 bytes a rating for the dates; 8 T E for the loss; relevance has the time of its
                         forward pass here, but no floor
    """
    config = engine.model.config
    members, dim, hidden, pooled = config.ensemble_size, config.member_dim + 1, config.hidden_dim, config.pooled_dim
    width, user_dim = config.embedding_dim, config.user_dim
    users, movies, context, targets = shape.users, shape.movies, shape.context, shape.targets
    raters = config.raters_dim
    movie_layers = 2 * movies * (hidden * (config.member_dim + 5 + raters) + (hidden + raters) * (width + members))
    user_layers = 2 * users * (engine.groups * hidden * (user_dim + pooled + 3) + (hidden + pooled) * members * dim)
    pooled_ratings = engine.groups * context
    tables = sum(table.numel() for table in engine.tables.tables)
    shared = sum(parameter.numel() for parameter in engine.layers.parameters) + users * user_dim
    if engine.relevance is not None:
        shared += sum(table.table.numel() for table in engine.relevance.tables) / engine.relevance_every
    return {
        "batch assembly": (21 * shape.ratings, 0),
        "movie tower": (8 * movies * width + 4 * movies * raters, movie_layers),
        "user tower": (4 * pooled_ratings * (2 * pooled + 4), 3 * pooled_ratings * pooled + user_layers),
        "ridge solve": (4 * context * (members * (dim + 2) + 1),
                        context * members * ((dim + 1) * (dim + 2) + 2 * dim)
                        + users * members * (dim**3 / 3 + 2 * dim**2)),
        "gather-dot": (4 * targets * members * (dim + 2), 2 * targets * members * dim),
        "backward": (4 * members * dim * (2 * targets + 3 * context) + 4 * pooled_ratings * pooled,
                     members * dim * (4 * targets + 6 * context + 2 * users * dim)
                     + 3 * pooled_ratings * pooled + 2 * (movie_layers + user_layers)),
        "optimizers": (16 * tables + 4 * movies * (width + members + 2 * pooled) + 28 * shared,
                       6 * tables + 12 * shared),
        REST: (16 * shape.ratings + 8 * targets * members, 10 * targets * members),
    }


def report(engine: Engine, seconds: float) -> dict:
    """Measure the machine and the stages of some steps; print a table, return its figures."""
    device = engine.model.offset.device
    copy_rate, product_rate = measure_copy(device), measure_product(device)
    stage_s, step_s = measure_stages(engine, seconds)
    shape = shape_of_steps(engine)
    print(f"\nthe machine copies {copy_rate / 1e9:.1f} GB/s (read and written) and multiplies at "
          f"{product_rate / 1e9:,.0f} GFLOP/s in float32; a step has {shape.users:.0f} users, {shape.ratings:,.0f} "
          f"ratings and {shape.movies:,.0f} movies")
    print(f"{'stage':<26}{'ms a step':>10}{'bytes/rating':>14}{'flop/rating':>13}{'at least ms':>13}"
          f"{'achieved/possible':>19}")
    stages, least_sum_s = {}, 0.0
    for stage, (num_bytes, operations) in least_work(engine, shape).items():
        least_s = max(num_bytes / copy_rate, operations / product_rate)
        least_sum_s += least_s
        stages[stage] = {"ms": round(1000 * stage_s[stage], 3), "least_ms": round(1000 * least_s, 3),
                         "bytes_per_rating": round(num_bytes / shape.ratings, 1),
                         "flop_per_rating": round(operations / shape.ratings, 1)}
        print(f"{stage:<26}{1000 * stage_s[stage]:>10.2f}{num_bytes / shape.ratings:>14,.0f}"
              f"{operations / shape.ratings:>13,.0f}{1000 * least_s:>13.2f}{least_s / stage_s[stage]:>19.1%}")
    print(f"{'a step':<26}{1000 * step_s:>10.2f}{'':>27}{1000 * least_sum_s:>13.2f}{least_sum_s / step_s:>19.1%}")
    return {"copy_gb_per_s": round(copy_rate / 1e9, 2), "product_gflop_per_s": round(product_rate / 1e9, 1),
            "step_ms": round(1000 * step_s, 3), "least_step_ms": round(1000 * least_sum_s, 3), "stages": stages}


def measure_copy(device: torch.device) -> float:
    """Return bytes per second, read and written, of a copy far beyond the caches."""
    source, target = (torch.ones(COPY_BYTES // 4, device=device) for _ in range(2))
    return 2 * COPY_BYTES / fastest(lambda: target.copy_(source), device)


def measure_product(device: torch.device) -> float:
    """Return floating-point operations per second of a large product in float32."""
    size = PRODUCT_SIZE[device.type]
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    return 2 * size**3 / fastest(lambda: left @ right, device)


def fastest(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of some calls."""
    times = []
    for _ in range(REPEATS):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def shape_of_steps(engine: Engine) -> StepShape:
    """Return the mean shape of some steps' batches."""
    config, fraction = engine.model.config, CONTEXT_FRACTION
    ratings = movies = users = 0
    for number in range(SAMPLE_STEPS):
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randperm(config.num_users, generator=generator)[:engine.batch_size]
        batch = batch_of(engine.ratings, chosen.to(engine.ratings.offset.device))
        users, ratings = users + len(chosen), ratings + len(batch.row)
        movies += len(batch.movie_idx.unique()) if batch.row.device.type == "cpu" else config.num_movies
    users, ratings, movies = users / SAMPLE_STEPS, ratings / SAMPLE_STEPS, movies / SAMPLE_STEPS
    return StepShape(users, ratings, fraction * ratings, (1 - fraction) * ratings, movies)


def measure_stages(engine: Engine, seconds: float) -> tuple[dict[str, float], float]:
    """Return each stage's own seconds per step, and those of the whole step, over steps of so many seconds."""
    device, clocks = engine.model.offset.device, StageClocks(engine.model.offset.device)

    with contextlib.suppress(Enough):
        run_epochs(engine, Clock(0, device))
    clock = Clock(seconds, device, warm_up=0)
    with contextlib.ExitStack() as patches, contextlib.suppress(Enough):
        for stage, owner, name in functions_of(engine):
            patches.enter_context(mock.patch.object(owner, name, clocks.around(stage, getattr(owner, name))))
        run_epochs(engine, clock)
    own = {stage: spent / clock.steps for stage, spent in clocks.seconds.items()}
    step_s = clock.elapsed_s / clock.steps
    return own | {REST: step_s - sum(own.values())}, step_s


def functions_of(engine: Engine) -> list[tuple[str, object, str]]:
    """Return (stage, owner, name) of the functions that make up a stage; one that is called by another counts apart."""
    return [("batch assembly", engine_module, "batch_of"), ("batch assembly", engine_module, "uniform"),
            ("batch assembly", engine_module, "halves"), ("movie tower", engine.model.movie_tower, "forward"),
            ("user tower", engine.model.user_tower, "forward"), ("ridge solve", user_tower, "ridge_solve"),
            ("gather-dot", two_tower, "paired_dot"), ("backward", torch.autograd, "backward"),
            ("backward", torch.autograd, "grad"),
            *(("optimizers", optimizer, "step") for optimizer in (engine.tables, engine.layers, engine.user_rows)),
            *([] if engine.relevance is None else [("optimizers", engine.relevance, "move")])]


class Enough(Exception):
    """The time is over."""


class Clock:
    """Counts steps in the place of a progress bar, and raises Enough when their time, after a warm-up, is over."""

    disable = True  # as of a bar that is not shown

    def __init__(self, seconds: float, device: torch.device, warm_up: int = WARM_UP_STEPS) -> None:
        self.seconds, self.device, self.steps = seconds, device, -warm_up
        self.ratings, self.elapsed_s, self.start = 0, 0.0, time.perf_counter()

    def update(self, num_ratings: int) -> None:
        """Count a step."""
        self.steps += 1
        if self.steps == 0:
            synchronize(self.device)
            self.start = time.perf_counter()
        elif self.steps > 0:
            self.ratings += num_ratings
            if time.perf_counter() - self.start >= self.seconds:
                synchronize(self.device)
                self.elapsed_s = time.perf_counter() - self.start
                raise Enough


def run_epochs(engine: Engine, clock: Clock) -> None:
    """Train until the clock ends it, in threads as main.py does."""
    with shared_out():
        for epoch in itertools.count(1):
            engine.run_epoch(epoch, 10**6, clock)


class StageClocks:
    """Adds up the time that stages take, each without what it calls of others."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, Counter()
        self.open = threading.local()  # stages that have begun, by thread

    def around(self, stage: str, function: Callable) -> Callable:
        """Return the function with a clock around it."""
        def timed(*args: object, **options: object) -> object:
            with self._running(stage):
                return function(*args, **options)
        return timed

    @contextlib.contextmanager
    def _running(self, stage: str) -> Iterator[None]:
        stages = self.open.__dict__.setdefault("stages", [])
        synchronize(self.device)
        start = time.perf_counter()
        stages.append(stage)
        yield
        synchronize(self.device)
        elapsed_s = time.perf_counter() - start
        stages.pop()
        self.seconds[stage] += elapsed_s
        if stages:
            self.seconds[stages[-1]] -= elapsed_s


def synchronize(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
