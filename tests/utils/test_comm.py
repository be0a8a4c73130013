import os
import re
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm

BIG = 3_000_000  # bytes


def test_alone_everything_is_trivial(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")  # left over from a launcher
    assert (comm.get_world_size(), comm.get_rank(), comm.get_local_rank(), comm.get_local_size()) == (1, 0, 0, 1)
    assert comm.is_main_process()
    comm.synchronize()
    data = {"a": object()}
    assert comm.all_gather(data)[0] is data
    assert comm.gather(data)[0] is data
    assert comm.reduce_dict({}) == {}
    losses = {"loss": torch.tensor(3.0)}
    assert comm.reduce_dict(losses) is losses


def test_shared_seed_follows_the_global_generator():
    np.random.seed(5)  # the global generator is meant
    first = comm.shared_random_seed()
    np.random.seed(5)  # the global generator is meant
    assert comm.shared_random_seed() == first
    assert 0 <= first < 2**31


def test_no_local_group_is_an_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match="create_local_process_group"):
        comm.get_local_process_group()


def _in_one_of_three(rank, address, results):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=3)
    seen = {}
    with pytest.raises(ValueError, match="cannot be split"):
        comm.create_local_process_group(2)
    comm.create_local_process_group(3, timeout=timedelta(seconds=2))
    with pytest.raises(RuntimeError, match="already"):
        comm.create_local_process_group(3)
    seen["ranks"] = (comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size())
    seen["all_gather"] = comm.all_gather({"rank": rank, "data": "x" * (1 + 5000 * rank)})
    seen["gather_0"] = comm.gather(rank)
    seen["gather_1"] = comm.gather(rank, dst=1)
    seen["gather_none"] = comm.gather(None)
    big = {"numbers": np.full(BIG if rank == 1 else 2, rank, dtype=np.uint8), "tensor": torch.full((2,), rank)}
    for name, gathered in (("big_all", comm.all_gather(big)), ("big_2", comm.gather(big, dst=2))):
        seen[name] = [(len(x["numbers"]), int(x["numbers"].max()), x["tensor"].tolist()) for x in gathered]
    np.random.seed(rank)
    seen["seed"] = comm.shared_random_seed()
    losses = {"b": torch.tensor(float(rank)), "a": torch.tensor(10.0 * rank, requires_grad=True)}
    seen["mean"] = {key: float(value) for key, value in comm.reduce_dict(losses).items()}
    seen["sum"] = {key: float(value) for key, value in comm.reduce_dict(losses, average=False).items()}
    _in_groups(rank, seen)
    _with_a_rank_missing(rank, seen)
    _as_other_projects_assign_the_group(rank, seen)
    comm.synchronize()
    torch.save(seen, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def _in_groups(rank, seen):
    only_zero, last_two = dist.new_group([0]), dist.new_group([1, 2])
    seen["alone_in_group"] = comm.all_gather("me", group=only_zero) if rank == 0 else None
    if rank:
        seen["two"] = (comm.all_gather(rank, group=last_two), comm.gather(rank, dst=2, group=last_two))
        with pytest.raises(ValueError, match=r"only the ranks \[1, 2\]"):
            comm.gather(rank, dst=0, group=last_two)
    seen["group_is_world"] = comm._get_global_gloo_group() is dist.group.WORLD


def _with_a_rank_missing(rank, seen):
    comm.all_gather("everyone", group=comm.get_local_process_group())
    if rank < 2:
        with pytest.raises(RuntimeError) as info:
            comm.gather("not everyone", group=comm.get_local_process_group())
        seen["missing"] = str(info.value)


def _as_other_projects_assign_the_group(rank, seen):
    comm._LOCAL_PROCESS_GROUP = None
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="3")
    seen["torchrun"] = (comm.get_local_rank(), comm.get_local_size())
    comm._LOCAL_PROCESS_GROUP = dist.group.WORLD
    os.environ.update(LOCAL_RANK="7", LOCAL_WORLD_SIZE="8")
    seen["assigned"] = (comm.get_local_rank(), comm.get_local_size())


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What three processes saw."""
    folder = tmp_path_factory.mktemp("three")
    mp.spawn(_in_one_of_three, args=((folder / "rendezvous").as_uri(), str(folder)), nprocs=3)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


def test_ranks(seen):
    assert [x["ranks"] for x in seen] == [(0, 3, 0, 3), (1, 3, 1, 3), (2, 3, 2, 3)]
    assert [x["torchrun"] for x in seen] == [(0, 3), (1, 3), (2, 3)]
    assert [x["assigned"] for x in seen] == [(0, 3), (1, 3), (2, 3)]


def test_objects_of_all_sizes(seen):
    assert seen[0]["all_gather"] == seen[1]["all_gather"] == seen[2]["all_gather"]
    assert [item["rank"] for item in seen[0]["all_gather"]] == [0, 1, 2]
    assert [len(item["data"]) for item in seen[0]["all_gather"]] == [1, 5001, 10001]
    assert [x["gather_0"] for x in seen] == [[0, 1, 2], [], []]
    assert [x["gather_1"] for x in seen] == [[], [0, 1, 2], []]
    assert seen[0]["gather_none"] == [None, None, None]
    big = [(2, 0, [0, 0]), (BIG, 1, [1, 1]), (2, 2, [2, 2])]
    assert [x["big_all"] for x in seen] == [big, big, big]
    assert [x["big_2"] for x in seen] == [[], [], big]


def test_objects_within_a_group(seen):
    assert seen[0]["alone_in_group"] == ["me"]
    assert [x["two"] for x in seen[1:]] == [([1, 2], []), ([1, 2], [1, 2])]
    assert all(x["group_is_world"] for x in seen)


def test_all_agree_on_the_seed_of_rank_zero(seen):
    np.random.seed(0)
    expected = np.random.randint(2**31)
    assert [x["seed"] for x in seen] == [expected] * 3


def test_losses_are_reduced_onto_rank_zero(seen):
    assert seen[0]["mean"] == {"a": 10.0, "b": 1.0}
    assert list(seen[0]["mean"]) == ["a", "b"]
    assert seen[0]["sum"] == {"a": 30.0, "b": 3.0}


def test_the_missing_rank_is_named(seen):
    message = seen[0]["missing"]
    assert re.search(r"Process 0 of 3 \(.+\) failed in gather\(\) at test_comm.py:\d+\. Rank 2 never came", message)
    assert re.search(r"its last exchange, on .+, was synchronize at test_comm.py:\d+\.", message)
    assert "are missing" not in message  # rank 1 came
