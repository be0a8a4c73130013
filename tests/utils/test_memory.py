import pytest
import torch

from detectron2.utils.memory import _ignore_torch_cuda_oom, retry_if_cuda_oom

OUT_OF_MEMORY = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


class OnAccelerator:
    """Looks like a tensor on a GPU."""

    device = torch.device("cuda", 0)

    def to(self, device):
        return f"moved to {device}"


class Fails:
    """A function that runs out of memory a few times."""

    def __init__(self, times, error=OUT_OF_MEMORY):
        self.times, self.error, self.calls = times, error, []

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        if len(self.calls) <= self.times:
            raise self.error
        return "result"


@pytest.mark.parametrize("times", [0, 1, 2])
def test_it_is_tried_three_times(times):
    function = Fails(times)
    tensor, on_cpu = OnAccelerator(), torch.zeros(2)
    assert retry_if_cuda_oom(function)(tensor, 3, other=on_cpu) == "result"
    assert len(function.calls) == times + 1
    (first, number), keywords = function.calls[-1]
    assert number == 3
    assert keywords["other"] is on_cpu
    assert first == "moved to cpu" if times == 2 else first is tensor


def test_in_the_end_the_error_comes_out():
    with pytest.raises(RuntimeError, match="out of memory"):
        retry_if_cuda_oom(Fails(3))()


@pytest.mark.parametrize("error", [RuntimeError("sizes do not match"), ValueError("out of memory, CUDA")])
def test_other_errors_are_not_touched(error):
    function = Fails(1, error)
    with pytest.raises(type(error)):
        retry_if_cuda_oom(function)()
    assert len(function.calls) == 1


def test_name_and_documentation_are_kept():
    def function():
        """What it does."""

    assert retry_if_cuda_oom(function).__doc__ == "What it does."


def test_ignoring():
    with _ignore_torch_cuda_oom():
        raise torch.OutOfMemoryError("anything")
    with pytest.raises(RuntimeError, match="other"), _ignore_torch_cuda_oom():
        raise RuntimeError("other")
