"""The sizes and the scale of a model, and the parts that can be left out of it."""

from dataclasses import dataclass, field
from typing import Any

PARTS = ("user_embedding", "pooled_history", "fold_in", "user_features", "year", "movie_features", "raters",
         "biases", "movie_bias_over_time", "recent_user_bias")
DATE_PARTS = ("movie_bias_over_time", "recent_user_bias")  # see models/temporal.py


MANY_RATINGS = 5_000_000  # of training; beyond, vectors have more coordinates
FEWER, MORE = 128, 256  # coordinates


def default_embedding_dim(num_ratings: int, ensemble_size: int) -> int:
    """Return how many coordinates the vectors of a data set have by default, a multiple of the ensemble's members."""
    return -(-(MORE if num_ratings > MANY_RATINGS else FEWER) // ensemble_size) * ensemble_size


def flag(default: object, text: str, old_name: str | None = None) -> Any:
    """Return the field of a dataclass that main.py makes a flag of, with a help text and perhaps a hidden alias."""
    return field(default=default, metadata={"help": text, "old_name": old_name})


@dataclass
class ModelConfig:
    """Everything that fixes the sizes and the scale of a model; saved with it."""

    num_users: int
    num_movies: int
    num_days: int  # of the data set
    stars_low: float
    stars_high: float
    stars_mean: float  # of the training ratings
    embedding_dim: int = flag(None, "coordinates of a user or movie vector, over the whole ensemble (default: 128, "
                              "or 256 beyond 5 million ratings)")  # E * D
    ensemble_size: int = flag(4, "members of the ensemble: models in one, which share the coordinates and whose scores "
                              "are averaged; of an even number, half see context and targets swapped, and err less "
                              "together; item-based towers have 2 at most", old_name="num_heads")
    hidden_dim: int = flag(128, "hidden units of each tower's MLP")
    user_dim: int = 16  # of the user embedding
    pooled_dim: int = 128
    raters_dim: int = 0  # of the coordinates of who rated a movie (training/raters.py)
    relevance_dim: int = 0  # of tastes (models/relevance.py); 0: there is no order by relevance
    dropout: float = flag(0.0, "fraction of hidden units left out in training")
    stars_step: float = 1.0  # between stars that can be given
    without: tuple[str, ...] = ()  # PARTS that are left out

    @property
    def member_dim(self) -> int:
        """Coordinates of one member's vectors, D."""
        return self.embedding_dim // self.ensemble_size

    def has(self, part: str) -> float:
        """Return 1 for a part of the model that is there, 0 for one that is left out."""
        return float(part not in self.without)

    @property
    def slope(self) -> float:
        """Stars per unit of score where the prediction is the mean: the sigmoid's derivative there."""
        low, high = self.stars_low, self.stars_high
        return max((self.stars_mean - low) * (high - self.stars_mean) / (high - low), 1e-3 * self.unit)

    @property
    def unit(self) -> float:
        """A quarter of the scale: of 1 to 5 stars a star, of 0 to 100 it is 25.

        Inputs and the loss are in this unit, so that training is the same whatever the scale.
        """
        return (self.stars_high - self.stars_low) / 4
