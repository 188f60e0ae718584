import pytest
import torch

import main
from models.ops.ranks import Ranks
from preprocessing.dataset import RatingsFile
from training import batches, build
from training.batches import batch_of, blocks_of, load_dataset, uniform


def test_shuffling_test_stars_changes_no_feature(data_dir):
    args = main.parse_args(["--embedding_dim", "16", "--ensemble_size", "2"])
    models = []
    for shuffled in (False, True):
        data = load_dataset(data_dir)
        if shuffled:
            order = torch.randperm(len(data.test), generator=torch.Generator().manual_seed(0))
            data.test.stars = data.test.stars[order]
        torch.manual_seed(0)
        models.append(build.build_model(args, data).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_parts_hold_the_rows_of_the_file(data_dir):
    data, file = load_dataset(data_dir), RatingsFile(data_dir)
    groups = [ratings for _, ratings in file.read_groups()]
    for number, part in enumerate((data.train, data.validation, data.test)):
        for name, values in (("movie_idx", part.movie_idx), ("stars", part.stars), ("user_idx", part.user_idx())):
            expected = torch.cat([torch.tensor(getattr(group, name)[group.split == number]) for group in groups])
            assert torch.equal(values.long(), expected.long())


def test_a_batch_holds_all_ratings_of_its_users_and_no_others(data_dir):
    train = load_dataset(data_dir).train
    users = torch.tensor([3, 7, 8, 200])
    batch = batch_of(train, users)
    for row, user in enumerate(users.tolist()):
        own = slice(train.offset[user], train.offset[user + 1])
        assert torch.equal(batch.movie_idx[batch.row == row], train.movie_idx[own].long())
        assert torch.equal(batch.stars[batch.row == row], train.stars[own].float())
    assert len(batch.row) == int(sum(train.offset[user + 1] - train.offset[user] for user in users))


def test_some_users_of_a_batch_are_a_batch_of_their_own(data_dir):
    train, users = load_dataset(data_dir).train, torch.tensor([3, 7, 8, 200])
    for chosen in ([True, False, False, True], [False, True, True, False], [True] * 4, [False] * 4):
        mask = torch.tensor(chosen)
        some, expected = batch_of(train, users).of_rows(mask), batch_of(train, users[mask])
        assert all(torch.equal(own, other) for own, other in zip(vars(some).values(), vars(expected).values()))


@pytest.mark.parametrize("chosen", [slice(0), slice(1), slice(3, None, 2), slice(None)])
def test_blocks_are_all_of_the_users_in_order_and_of_about_so_many_ratings(data_dir, monkeypatch, chosen):
    monkeypatch.setattr(batches, "BLOCK_RATINGS", 1000)
    train = load_dataset(data_dir).train
    users = torch.arange(len(train.offset) - 1)[chosen]
    blocks = blocks_of(users, train)
    assert torch.equal(torch.cat([users[:0], *blocks]), users)
    sizes, count = [len(batch_of(train, block).row) for block in blocks], train.offset.diff()
    assert all(0 < size <= 1000 + count.max() for size in sizes)
    assert len(sizes) <= count[users].sum() / 1000 + 1


def test_blocks_of_users_with_few_ratings_have_a_bounded_number_of_users(data_dir, monkeypatch):
    train = load_dataset(data_dir).train
    train.offset = torch.zeros(401, dtype=torch.int64)
    monkeypatch.setattr(batches, "BLOCK_RATINGS", 2**10)
    monkeypatch.setattr(batches, "BLOCK_USERS", 2**7)
    assert [len(block) for block in blocks_of(torch.arange(400), train)] == [128, 128, 128, 16]


def test_ranks_read_each_rating_exactly_once(data_dir):
    whole = load_dataset(data_dir).train
    shards = [load_dataset(data_dir, Ranks(rank, 3)).train for rank in range(3)]
    assert torch.equal(torch.cat([shard.movie_idx for shard in shards]), whole.movie_idx)
    assert torch.equal(torch.cat([shard.offset.diff() for shard in shards]), whole.offset.diff())
    assert torch.equal(torch.cat([shard.user_idx() for shard in shards]), whole.user_idx())


def test_hashed_chance_is_even_and_independent_of_the_seed():
    users, movies = torch.arange(2000).repeat_interleave(50), torch.arange(50).repeat(2000)
    draws = torch.stack([uniform(seed, users, movies) for seed in range(8)])
    assert draws.min() >= 0 and draws.max() < 1
    histogram = torch.histc(draws, 20, 0, 1) / draws.numel()
    assert (histogram - 0.05).abs().max() < 5 * (0.05 * 0.95 / draws.numel()) ** 0.5
    correlation = torch.corrcoef(draws) - torch.eye(8)
    assert correlation.abs().max() < 5 / len(users) ** 0.5
