"""A processed data set: the format that all stages share. `schema.py` says what its files hold."""

from preprocessing.dataset.exit_codes import Terminated, exit_code
from preprocessing.dataset.folder import lock_beside, locked, replaced, sync
from preprocessing.dataset.frames import movies_frame, ratings_frame, users_frame
from preprocessing.dataset.hashing import hash_ids, uniform
from preprocessing.dataset.reader import RatingsFile, UsersFile, read_meta, read_movies, read_users
from preprocessing.dataset.records import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    CutShort,
    DataError,
    Id,
    Movies,
    Ratings,
    Titles,
    User,
    Users,
    are_text,
    position_of,
    printable,
    typed_id,
)
from preprocessing.dataset.schema import FILES, PREPROCESS

__all__ = ["FILES", "PREPROCESS", "SPLITS", "TEST", "TRAIN", "VALIDATION", "CutShort", "DataError", "Id", "Movies",
           "Ratings", "RatingsFile", "Terminated", "Titles", "User", "Users", "UsersFile", "are_text", "exit_code",
           "hash_ids", "lock_beside", "locked", "movies_frame", "position_of", "printable", "ratings_frame",
           "read_meta", "read_movies", "read_users", "replaced", "sync", "typed_id", "uniform", "users_frame"]
