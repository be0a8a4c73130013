import pytest
import torch
import torch.distributed as dist
from torch import nn

from detectron2.utils.wrappers import unwrap_model


@pytest.fixture
def alone_in_a_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("model", [nn.Linear(2, 2), None, "not a module"])
def test_a_plain_object_is_returned_as_it_is(model):
    assert unwrap_model(model) is model


def test_data_parallel_and_compiled_models():
    model = nn.Linear(2, 2)
    assert unwrap_model(nn.DataParallel(model)) is model
    assert unwrap_model(torch.compile(model)) is model
    assert unwrap_model(torch.compile(nn.DataParallel(torch.compile(model)))) is model


def test_distributed_data_parallel(alone_in_a_group):
    model = nn.Linear(2, 2)
    assert unwrap_model(torch.compile(nn.parallel.DistributedDataParallel(model))) is model


def test_a_submodule_named_module_is_not_a_wrapper():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(1, 1)
            self._orig_mod = "text"

    holder = Holder()
    assert unwrap_model(holder) is holder
