"""Explanations of collective operations that fail; tests/utils/test_comm.py tests them with several processes."""

import re

import pytest
import torch.distributed as dist

from detectron2.distributed.exchange import tracked


@pytest.fixture
def alone_in_a_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_success_says_nothing(alone_in_a_group, caplog, capfd):
    with tracked("barrier"):
        dist.barrier()
    assert (caplog.text, capfd.readouterr().out) == ("", "")


def test_a_failure_names_process_operation_and_line(alone_in_a_group):
    with pytest.raises(RuntimeError) as info, tracked("barrier"):
        raise RuntimeError("the peer is gone")
    pattern = r"Process 0 of 1 \(.+\) failed in barrier\(\) at test_exchange.py:\d+\. All processes reached this call"
    assert re.match(pattern, str(info.value))
    assert str(info.value).endswith("(the peer is gone)")


def test_other_errors_pass(alone_in_a_group):
    with pytest.raises(KeyError, match="a fault of the caller"), tracked("barrier"):
        raise KeyError("a fault of the caller")
