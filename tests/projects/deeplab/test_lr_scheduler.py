"""WarmupPolyLR against its formula."""

import pytest
import torch

from detectron2.projects.deeplab.lr_scheduler import WarmupPolyLR


def _rates(steps, **kwargs):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.5)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = WarmupPolyLR(optimizer, **kwargs)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return rates


def test_polynomial():
    rates = _rates(10, max_iters=10, warmup_iters=0, power=0.9)
    for i, (first, second) in enumerate(rates):
        assert first == pytest.approx((1 - i / 10) ** 0.9)
        assert second == pytest.approx(first / 2)


def test_warmup_multiplies():
    rates = _rates(8, max_iters=20, warmup_iters=4, warmup_factor=0.2, power=2.0)
    factors = [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1]
    assert [r[0] for r in rates] == pytest.approx([f * (1 - i / 20) ** 2 for i, f in enumerate(factors)])
    rates = _rates(3, max_iters=20, warmup_iters=2, warmup_factor=0.2, warmup_method="constant", power=1.0)
    assert [r[0] for r in rates] == pytest.approx([0.2, 0.2 * 19 / 20, 18 / 20])


def test_constant_ending_begins_after_the_warmup():
    rates = [r[0] for r in _rates(10, max_iters=10, warmup_iters=2, warmup_factor=0.1, power=1.0, constant_ending=0.3)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[6:] == pytest.approx([0.4, 0.3, 0.3, 0.3])


def test_rates_stay_real_beyond_the_end():
    rates = [r[0] for r in _rates(5, max_iters=2, warmup_iters=0)]
    assert rates[2:] == [0, 0, 0]


def test_max_iters_must_be_positive():
    with pytest.raises(ValueError, match="max_iters"):
        _rates(1, max_iters=0)


def test_resumes_from_a_state_dict():
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, WarmupPolyLR(optimizer, 10, warmup_iters=3)

    optimizer, scheduler = make()
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    other_optimizer, other = make()
    other.load_state_dict(scheduler.state_dict())
    other_optimizer.load_state_dict(optimizer.state_dict())
    other_optimizer.step()
    other.step()
    assert other_optimizer.param_groups[0]["lr"] == pytest.approx(0.4**0.9)
