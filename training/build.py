"""Build what a run trains: the model for a data set, with its statistics, and its trainer."""

import argparse
import math
from dataclasses import fields
from fractions import Fraction

import torch

from models.blend import Blend, item_based_helps
from models.config import ModelConfig, default_embedding_dim
from models.ops.ranks import ALONE, Ranks
from preprocessing.dataset import DataError
from training.batches import DataSet, movie_range
from training.engine import Settings
from training.raters import coordinates, num_coordinates
from training.trainer import Trainer

MOST_STEPS = 1000  # of a scale
RELEVANCE_DIM = 64  # coordinates of tastes


def build_trainer(args: argparse.Namespace, data: DataSet, device: torch.device, ranks: Ranks) -> Trainer:
    """Make a new model and what trains it."""
    torch.manual_seed(args.seed)
    settings = Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__ if hasattr(args, name)})
    return Trainer(build_model(args, data, ranks).to(device), data, settings, ranks)


def build_model(args: argparse.Namespace, data: DataSet, ranks: Ranks = ALONE) -> Blend:
    """Make a model for a data set, its statistics taken from the training ratings of all ranks, with the rows of this
    rank's users."""
    stars = data.train.stars.double() * data.meta["stars_step"]
    device = choose_device(args.device, ranks)  # where the ranks can talk to each other

    def count_and_sum(index: torch.Tensor, num_values: int) -> tuple[torch.Tensor, torch.Tensor]:
        count, total = (torch.bincount(index, weights, num_values).double().to(device) for weights in (None, stars))
        ranks.sum_(count, total)
        return count.cpu(), total.cpu()

    count, total = count_and_sum(data.train.movie_idx.long(), data.num_movies)
    mean = float(total.sum() / count.sum())
    low, high = data.meta["stars_range"]
    raters_dim = 0 if "raters" in args.without else num_coordinates(data.num_users, data.num_movies, int(count.sum()))
    chosen = {field.name: getattr(args, field.name) for field in fields(ModelConfig) if "help" in field.metadata}
    chosen["embedding_dim"] = chosen["embedding_dim"] or default_embedding_dim(int(count.sum()), args.ensemble_size)
    config = ModelConfig(data.num_users, data.num_movies, data.meta["num_days"], low, high, mean, **chosen,
                         stars_step=step_between(low, high, data.meta["stars_step"]), raters_dim=raters_dim,
                         relevance_dim=RELEVANCE_DIM if args.relevance_weight else 0, without=args.without)
    model = Blend(config, args.blend == "both" or (args.blend == "auto"
                                                   and item_based_helps(data.num_users, data.num_movies)),
                  data.train.owned, movie_range(data, ranks))
    model.user_based.movie_tower.set_statistics(torch.tensor(data.movies.year), count, total - mean * count)
    if model.relevance is not None:
        model.relevance.set_statistics(model.user_based.movie_tower.mean, count.float())
    if model.item_based is not None:
        count, total = count_and_sum(data.train.user_idx(), data.num_users)
        model.item_based.movie_tower.set_statistics(torch.zeros(data.num_users), count, total - mean * count)
    if raters_dim:
        of_movies, of_users = coordinates(data.train, data.num_movies, raters_dim, ranks, device,
                                          data.num_users if model.item_based is not None else 0)
        model.user_based.movie_tower.raters.copy_(of_movies)
        if model.item_based is not None:
            model.item_based.movie_tower.raters.copy_(of_users)
    return model


def step_between(low: float, high: float, stars_step: float) -> float:
    """Return the step by which all stars that can be given follow each other from one end of the scale to the other.

    It is that of the ratings, unless an end that was named is no multiple of it. Of so odd a scale that it would have
    more than MOST_STEPS, the ends are kept, and stars are what is nearest to them.
    """
    first, last, step = (Fraction(value).limit_denominator(10**6) for value in (low, high, stars_step))
    whole = math.lcm(first.denominator, last.denominator, step.denominator)
    common = Fraction(math.gcd(*(int(value * whole) for value in (first, last, step))), whole)
    if last - first <= MOST_STEPS * common:
        return float(common if (last - first) % step or first % step else step)
    return float((last - first) / max(round((last - first) / step), 1))


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Return the device to train on; of many processes on a machine, each takes a GPU of its own."""
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("--device cuda, but this PyTorch finds no GPU; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.local_rank >= (num_gpus := torch.cuda.device_count()):
        raise DataError(f"GPUs on this machine: {num_gpus}, fewer than processes; start so many with --nproc_per_node, "
                        "or use --device cpu")
    torch.cuda.set_device(ranks.local_rank)  # where Triton and NCCL work
    return torch.device(f"cuda:{ranks.local_rank}")
