import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from detectron2.utils import comm


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


def _in_one_of_two(rank, address, results):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    seen = {}
    with pytest.raises(ValueError, match="cannot be split"):
        comm.create_local_process_group(3)
    comm.create_local_process_group(2)
    with pytest.raises(RuntimeError, match="already"):
        comm.create_local_process_group(2)
    seen["ranks"] = (comm.get_rank(), comm.get_world_size(), comm.get_local_rank(), comm.get_local_size())
    seen["all_gather"] = comm.all_gather({"rank": rank, "data": "x" * (1 + 5000 * rank)})
    seen["gather_0"] = comm.gather(rank)
    seen["gather_1"] = comm.gather(rank, dst=1)
    seen["seed"] = comm.shared_random_seed()
    losses = {"b": torch.tensor(float(rank)), "a": torch.tensor(10.0 * rank, requires_grad=True)}
    seen["mean"] = {key: float(value) for key, value in comm.reduce_dict(losses).items()}
    seen["sum"] = {key: float(value) for key, value in comm.reduce_dict(losses, average=False).items()}
    only_zero = dist.new_group([0])
    seen["alone_in_group"] = comm.all_gather("me", group=only_zero) if rank == 0 else None
    seen["group_is_world"] = comm._get_global_gloo_group() is dist.group.WORLD
    # as other projects assign it
    comm._LOCAL_PROCESS_GROUP = None
    os.environ.update(LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
    seen["torchrun"] = (comm.get_local_rank(), comm.get_local_size())
    comm.synchronize()
    torch.save(seen, f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path):
    address = (tmp_path / "rendezvous").as_uri()
    mp.spawn(_in_one_of_two, args=(address, str(tmp_path)), nprocs=2)
    zero, one = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (zero["ranks"], one["ranks"]) == ((0, 2, 0, 2), (1, 2, 1, 2))
    assert zero["all_gather"] == one["all_gather"]
    assert [item["rank"] for item in zero["all_gather"]] == [0, 1]
    assert [len(item["data"]) for item in zero["all_gather"]] == [1, 5001]
    assert (zero["gather_0"], one["gather_0"]) == ([0, 1], [])
    assert (zero["gather_1"], one["gather_1"]) == ([], [0, 1])
    assert zero["seed"] == one["seed"]
    assert zero["mean"] == {"a": 5.0, "b": 0.5}
    assert list(zero["mean"]) == ["a", "b"]
    assert zero["sum"] == {"a": 10.0, "b": 1.0}
    assert zero["alone_in_group"] == ["me"]
    assert zero["group_is_world"]
    assert (zero["torchrun"], one["torchrun"]) == ((0, 2), (1, 2))
