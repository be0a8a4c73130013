import math

import pytest
import torch
from fvcore.common.param_scheduler import (
    ConstantParamScheduler,
    CosineParamScheduler,
    MultiStepParamScheduler,
    StepWithFixedGammaParamScheduler,
)
from hypothesis import given
from hypothesis import strategies as st

from detectron2.solver import LRMultiplier, LRScheduler, WarmupCosineLR, WarmupMultiStepLR, WarmupParamScheduler
from detectron2.solver.lr_scheduler import _get_warmup_factor_at_iter


def optimizer(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def rates_of(scheduler, count):
    """The rates of the first group at `count` iterations, the way a trainer steps."""
    rates = []
    for _ in range(count):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def test_base_class_is_that_of_torch():
    assert LRScheduler is torch.optim.lr_scheduler.LRScheduler
    for cls in (LRMultiplier, WarmupMultiStepLR, WarmupCosineLR):
        assert issubclass(cls, LRScheduler)


@pytest.mark.parametrize("method", ["linear", "constant"])
def test_multi_step_with_warmup(method):
    schedule = MultiStepParamScheduler([1, 0.1, 0.01], milestones=[10, 15], num_updates=20)
    scheduler = LRMultiplier(optimizer(5.0), WarmupParamScheduler(schedule, 0.001, 5 / 20, method), 20)
    warmup = [0.005] * 5 if method == "constant" else [5 * (0.001 + (1 - 0.001) * i / 5) for i in range(5)]
    assert rates_of(scheduler, 20) == pytest.approx(warmup + [5.0] * 5 + [0.5] * 5 + [0.05] * 5)


def test_cosine_with_warmup_continues_where_the_warmup_ends():
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.25)
    cosine = [0.5 * (1 + math.cos(math.pi * i / 20)) for i in range(20)]
    warmup = [0.1 + (cosine[5] - 0.1) * i / 5 for i in range(5)]
    assert rates_of(LRMultiplier(optimizer(1.0), schedule, 20), 20) == pytest.approx(warmup + cosine[5:])


def test_rescaling_runs_the_whole_schedule_after_the_warmup():
    schedule = WarmupParamScheduler(CosineParamScheduler(1, 0), 0.1, 0.25, rescale_interval=True)
    after = [0.5 * (1 + math.cos(math.pi * i / 15)) for i in range(15)]
    assert rates_of(LRMultiplier(optimizer(1.0), schedule, 20), 20)[5:] == pytest.approx(after)


@given(factor=st.floats(0, 1), length=st.floats(0, 1), where=st.floats(0, 0.999))
def test_a_warmup_never_exceeds_its_schedule(factor, length, where):
    value = WarmupParamScheduler(ConstantParamScheduler(2.0), factor, length)(where)
    assert 2 * factor - 1e-9 <= value <= 2 + 1e-9


@pytest.mark.parametrize(("length", "expected"), [(0.0, [1.0] * 4), (1.0, [0.0, 0.25, 0.5, 0.75])])
def test_no_warmup_and_nothing_but_warmup(length, expected):
    schedule = WarmupParamScheduler(ConstantParamScheduler(1.0), 0.0, length)
    assert [schedule(i / 4) for i in range(4)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [((0.1, 0.1, "cubic"), "cubic"), ((0.1, 1.5), "1.5")])
def test_bad_warmups_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        WarmupParamScheduler(ConstantParamScheduler(1.0), *arguments)


def test_the_step_behind_the_last_iteration_is_defined():
    # a trainer steps the schedule after the last iteration, and some fvcore schedules have no value there
    schedule = StepWithFixedGammaParamScheduler(base_value=1.0, num_decays=2, gamma=0.5, num_updates=6)
    scheduler = LRMultiplier(optimizer(1.0), schedule, 6)
    assert rates_of(scheduler, 8) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25])


def test_groups_keep_their_ratio():
    scheduler = LRMultiplier(optimizer(1.0, 10.0), MultiStepParamScheduler([1, 0.1], milestones=[1], num_updates=2), 2)
    rates_of(scheduler, 1)
    assert scheduler.get_last_lr() == pytest.approx([0.1, 1.0])


def test_resuming_continues_the_schedule_of_the_new_config():
    schedule = MultiStepParamScheduler([1, 0.1], milestones=[5], num_updates=10)
    first = LRMultiplier(optimizer(1.0), schedule, 10)
    rates_of(first, 5)
    state = first.state_dict()
    assert state == {"base_lrs": [1.0], "last_epoch": 5}
    second = LRMultiplier(optimizer(1.0), MultiStepParamScheduler([1, 0.2], milestones=[5], num_updates=10), 10)
    second.load_state_dict(state)
    assert second.last_epoch == 5
    assert second.get_lr() == pytest.approx([0.2])


def test_wrong_arguments_are_explained():
    torch_scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer(1.0))
    with pytest.raises(TypeError, match="ConstantLR"):
        LRMultiplier(optimizer(1.0), torch_scheduler, 10)
    with pytest.raises(ValueError, match="max_iter"):
        LRMultiplier(optimizer(1.0), ConstantParamScheduler(1.0), 0)


def test_the_older_multi_step_class():
    scheduler = WarmupMultiStepLR(optimizer(5.0), [10, 15], 0.1, warmup_factor=0.001, warmup_iters=5)
    warmup = [5 * (0.001 * (1 - i / 5) + i / 5) for i in range(5)]
    assert rates_of(scheduler, 20) == pytest.approx(warmup + [5.0] * 5 + [0.5] * 5 + [0.05] * 5)
    with pytest.raises(ValueError, match="rise"):
        WarmupMultiStepLR(optimizer(1.0), [15, 10])


def test_the_older_cosine_class_multiplies_warmup_and_cosine():
    scheduler = WarmupCosineLR(optimizer(1.0), 20, warmup_factor=0.1, warmup_iters=5)
    factors = [0.1 * (1 - i / 5) + i / 5 for i in range(5)] + [1.0] * 15
    expected = [f * 0.5 * (1 + math.cos(math.pi * i / 20)) for i, f in enumerate(factors)]
    assert rates_of(scheduler, 20) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "iteration", "expected"),
    [("linear", 0, 0.1), ("linear", 5, 0.55), ("linear", 10, 1.0), ("constant", 9, 0.1), ("constant", 10, 1.0)],
)
def test_warmup_factor(method, iteration, expected):
    assert _get_warmup_factor_at_iter(method, iteration, 10, 0.1) == pytest.approx(expected)


def test_unknown_warmup():
    with pytest.raises(ValueError, match="cubic"):
        _get_warmup_factor_at_iter("cubic", 0, 10, 0.1)
