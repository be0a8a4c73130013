import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.layers import (
    CycleBatchNormList,
    FrozenBatchNorm2d,
    LayerNorm,
    NaiveSyncBatchNorm,
    get_norm,
)
from detectron2.utils import comm


def random_frozen(channels=4):
    bn = FrozenBatchNorm2d(channels)
    for name in ("weight", "bias", "running_mean"):
        getattr(bn, name).normal_()
    bn.running_var.uniform_(0.5, 2)
    return bn


def by_hand(bn, x):
    mean, var, w, b = (t.numpy()[:, None, None] for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return (x - mean) / np.sqrt(var + bn.eps) * w + b


class TestFrozenBatchNorm:
    def test_starts_as_the_identity(self):
        x = torch.randn(2, 4, 3, 3)
        torch.testing.assert_close(FrozenBatchNorm2d(4)(x), x)

    @pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 4, 3, 5)])
    @pytest.mark.parametrize("grad", [False, True])
    def test_against_the_formula(self, shape, grad):
        bn, x = random_frozen(), torch.randn(shape)
        got = bn(x.clone().requires_grad_(grad))
        np.testing.assert_allclose(got.detach().numpy(), by_hand(bn, x.numpy()), rtol=1e-4, atol=1e-5)

    def test_gradient(self):
        bn = random_frozen().double()
        assert torch.autograd.gradcheck(bn, torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_input(self, dtype):
        bn, x = random_frozen().to(dtype), torch.randn(2, 4, 3, 3).to(dtype)
        for grad in (False, True):
            got = bn(x.clone().requires_grad_(grad))
            assert got.dtype == dtype
            expected = by_hand(random_like(bn), x.float().numpy())
            np.testing.assert_allclose(got.detach().float().numpy(), expected, rtol=0.05, atol=0.05)

    def test_attributes_are_buffers(self):
        bn = FrozenBatchNorm2d(4, eps=1e-3)
        assert list(bn.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
        assert not list(bn.parameters())
        assert (bn.num_features, bn.eps) == (4, 1e-3)
        assert repr(bn) == "FrozenBatchNorm2d(num_features=4, eps=0.001)"

    def test_keeps_channels_last(self):
        x = torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last)
        for grad in (False, True):
            y = random_frozen()(x.clone(memory_format=torch.preserve_format).requires_grad_(grad))
            assert y.is_contiguous(memory_format=torch.channels_last)


def random_like(bn):
    """The same norm in float32."""
    copy = FrozenBatchNorm2d(bn.num_features, bn.eps)
    copy.load_state_dict({k: v.float() for k, v in bn.state_dict().items()})
    return copy


class TestFrozenBatchNormLoading:
    def state(self, version, **values):
        state = nn.Sequential(FrozenBatchNorm2d(2)).state_dict()
        for key in list(state):
            name = key.removeprefix("0.")
            if name in values:
                state[key] = values[name]
            else:
                del state[key]
        state._metadata["0"] = {} if version is None else {"version": version}
        return state

    def full(self):
        return {
            "weight": torch.tensor([1.0, 2]),
            "bias": torch.tensor([3.0, 4]),
            "running_mean": torch.tensor([5.0, 6]),
            "running_var": torch.tensor([7.0, 8]),
        }

    @pytest.mark.parametrize("version", [None, 1])
    def test_only_weight_and_bias(self, version):
        model = nn.Sequential(FrozenBatchNorm2d(2))
        values = self.full()
        model.load_state_dict(self.state(version, weight=values["weight"], bias=values["bias"]))
        x = torch.randn(1, 2, 3, 3)
        expected = x * torch.tensor([1.0, 2])[:, None, None] + torch.tensor([3.0, 4])[:, None, None]
        torch.testing.assert_close(model(x), expected)

    @pytest.mark.parametrize("version", [None, 3])
    def test_current(self, version):
        model = nn.Sequential(FrozenBatchNorm2d(2))
        model.load_state_dict(self.state(version, **self.full()))
        assert model[0].running_var.tolist() == [7, 8]

    def test_version_2_normalised_without_eps(self):
        model, values = nn.Sequential(FrozenBatchNorm2d(2)), self.full()
        model.load_state_dict(self.state(2, **values))
        torch.testing.assert_close(model[0].running_var, torch.tensor([7.0, 8]) - 1e-5, rtol=0, atol=1e-7)
        assert values["running_var"].tolist() == [7, 8]  # the caller's tensor is not touched

    def test_current_without_statistics_is_an_error(self):
        values = self.full()
        with pytest.raises(RuntimeError, match="running_var"):
            nn.Sequential(FrozenBatchNorm2d(2)).load_state_dict(self.state(3, weight=values["weight"]))

    def test_takes_the_state_of_a_batch_norm(self):
        frozen, bn = FrozenBatchNorm2d(2), nn.BatchNorm2d(2)
        bn.running_mean += 3
        frozen.load_state_dict(bn.state_dict())
        assert frozen.running_mean.tolist() == [3, 3]


class TestConvert:
    @pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm])
    @pytest.mark.parametrize("affine", [True, False])
    def test_a_norm_becomes_a_new_module(self, kind, affine):
        bn = kind(3, affine=affine, eps=1e-3).eval()
        bn.running_mean.normal_()
        bn.running_var.uniform_(0.5, 2)
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(bn)
        assert type(frozen) is FrozenBatchNorm2d and frozen.eps == 1e-3
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(frozen(x), bn(x))

    def test_a_model_is_changed_in_place(self):
        model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2)), nn.GroupNorm(1, 2))
        assert FrozenBatchNorm2d.convert_frozen_batchnorm(model) is model
        assert [type(m).__name__ for m in model.modules()][2:] == ["Sequential", "FrozenBatchNorm2d", "GroupNorm"]

    def test_values_are_copies(self):
        bn = nn.BatchNorm2d(2)
        frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(bn)
        with torch.no_grad():
            bn.weight.add_(1)
        assert frozen.weight.tolist() == [1, 1]

    @pytest.mark.parametrize("kind", [nn.BatchNorm2d, NaiveSyncBatchNorm])
    def test_the_count_of_batches_stays_in_the_state(self, kind):
        bn = kind(2)
        bn(torch.rand(2, 2, 3, 3))
        model = nn.Sequential(FrozenBatchNorm2d.convert_frozen_batchnorm(bn))
        state = model.state_dict()
        assert state["0.num_batches_tracked"] == 1
        state["0.num_batches_tracked"] = torch.tensor(7)
        model.load_state_dict(state)
        assert model.state_dict()["0.num_batches_tracked"] == 7
        del state["0.num_batches_tracked"]
        model.load_state_dict(state)
        assert model.state_dict()["0.num_batches_tracked"] == 7
        fresh = nn.Sequential(FrozenBatchNorm2d(2))
        fresh.load_state_dict(model.state_dict())
        assert "0.num_batches_tracked" not in fresh.state_dict()

    def test_no_statistics(self):
        with pytest.raises(ValueError, match="track_running_stats"):
            FrozenBatchNorm2d.convert_frozen_batchnorm(nn.BatchNorm2d(2, track_running_stats=False))


class TestGetNorm:
    @pytest.mark.parametrize("norm", ["", None])
    def test_none(self, norm):
        assert get_norm(norm, 4) is None

    @pytest.mark.parametrize(
        ("norm", "kind"),
        [
            ("BN", nn.BatchNorm2d),
            ("SyncBN", nn.SyncBatchNorm),
            ("nnSyncBN", nn.SyncBatchNorm),
            ("FrozenBN", FrozenBatchNorm2d),
            ("GN", nn.GroupNorm),
            ("LN", LayerNorm),
            ("naiveSyncBN", NaiveSyncBatchNorm),
            ("naiveSyncBN_N", NaiveSyncBatchNorm),
        ],
    )
    def test_names(self, norm, kind):
        layer = get_norm(norm, 64)
        assert type(layer) is kind
        assert layer(torch.randn(2, 64, 3, 3)).shape == (2, 64, 3, 3)

    @pytest.mark.parametrize("norm", ["SyncBN", "nnSyncBN"])
    def test_synchronized_norm_on_the_cpu_says_what_to_use(self, norm, monkeypatch):
        layer = pickle.loads(pickle.dumps(get_norm(norm, 3)))
        x = torch.randn(2, 3, 4, 4)
        layer(x)
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        with pytest.raises(ValueError, match=r"GPUs only.*'naiveSyncBN'"):
            layer(x)
        assert layer.eval()(x).shape == x.shape

    def test_group_norm_has_32_groups(self):
        assert get_norm("GN", 64).num_groups == 32
        with pytest.raises(ValueError, match=r"48 channels are not a multiple of 32"):
            get_norm("GN", 48)

    def test_a_function(self):
        assert get_norm(lambda c: nn.InstanceNorm2d(c), 7).num_features == 7

    def test_unknown(self):
        with pytest.raises(ValueError, match=r"'bn'.*FrozenBN"):
            get_norm("bn", 4)


class TestLayerNorm:
    @pytest.mark.parametrize("n", [0, 2])
    def test_against_the_formula(self, n):
        norm, x = LayerNorm(5), torch.randn(n, 5, 3, 4)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        a = x.numpy()
        mean, var = a.mean(1, keepdims=True), a.var(1, keepdims=True)
        w, b = norm.weight.detach().numpy()[:, None, None], norm.bias.detach().numpy()[:, None, None]
        np.testing.assert_allclose(
            norm(x).detach().numpy(), (a - mean) / np.sqrt(var + 1e-6) * w + b, rtol=1e-4, atol=1e-5
        )

    def test_keys_and_attributes(self):
        norm = LayerNorm(5)
        assert list(norm.state_dict()) == ["weight", "bias"]
        assert norm.normalized_shape == (5,) and norm.eps == 1e-6
        assert repr(norm) == "LayerNorm(5, eps=1e-06)"


class TestCycleBatchNormList:
    def test_statistics_in_turn_affine_shared(self):
        norms = CycleBatchNormList(length=2, bn_class=nn.BatchNorm2d, num_features=3, momentum=1.0)
        with torch.no_grad():
            norms.weight.fill_(2)
            norms.bias.fill_(1)
        small, large = torch.randn(4, 3, 5, 5), 10 + torch.randn(4, 3, 2, 2)
        for x in (small, large, small, large):
            y = norms(x)
            torch.testing.assert_close(y.mean(dim=(0, 2, 3)), torch.ones(3), rtol=0, atol=1e-4)
        torch.testing.assert_close(norms[0].running_mean, small.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(norms[1].running_mean, large.mean(dim=(0, 2, 3)))

    def test_keys(self):
        keys = set(CycleBatchNormList(2, num_features=3).state_dict())
        stats = {f"{i}.{n}" for i in range(2) for n in ("running_mean", "running_var", "num_batches_tracked")}
        assert keys == stats | {"weight", "bias"}

    def test_without_affine(self):
        norms = CycleBatchNormList(2, num_features=3, affine=False)
        assert not list(norms.parameters())
        assert "affine=False" in repr(norms)
        assert norms(torch.randn(2, 3, 2, 2)).shape == (2, 3, 2, 2)


class TestNaiveSyncBatchNorm:
    def test_alone_it_is_a_batch_norm(self):
        x = torch.randn(2, 3, 4, 4)
        for kind in (nn.BatchNorm2d(3), NaiveSyncBatchNorm(3, stats_mode="N")):
            kind(x)
            torch.testing.assert_close(kind.running_mean, 0.1 * x.mean(dim=(0, 2, 3)))

    def test_unknown_mode(self):
        with pytest.raises(ValueError, match="'M'"):
            NaiveSyncBatchNorm(3, stats_mode="M")

    @pytest.mark.parametrize(("mode", "sizes"), [("N", (2, 0)), ("N", (3, 1)), ("", (2, 2))])
    def test_two_workers_equal_one_with_all_samples(self, mode, sizes, two_workers):
        everything = torch.randn(4, 3, 4, 4)[: sum(sizes)]
        weight = torch.arange(everything.numel(), dtype=torch.float32).view_as(everything)

        def work(rank):
            x = everything.split(list(sizes))[rank].clone().requires_grad_()
            bn = NaiveSyncBatchNorm(3, stats_mode=mode)
            y = bn(x)
            (y * weight.split(list(sizes))[rank]).sum().backward()
            return y.detach(), x.grad, bn.running_mean, bn.running_var

        (y0, grad0, mean, _), (y1, grad1, _, var) = two_workers(work)
        x, bn = everything.clone().requires_grad_(), nn.BatchNorm2d(3)
        y = bn(x)
        (y * weight).sum().backward()
        torch.testing.assert_close(torch.cat([y0, y1]), y.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.cat([grad0, grad1]), x.grad, rtol=1e-3, atol=1e-2)
        torch.testing.assert_close(mean, bn.running_mean, rtol=1e-4, atol=1e-5)
        biased = 0.9 + 0.1 * everything.var(dim=(0, 2, 3), unbiased=False)
        torch.testing.assert_close(var, biased, rtol=1e-4, atol=1e-5)

    def test_no_sample_anywhere_changes_nothing(self, two_workers):
        def work(rank):
            bn = NaiveSyncBatchNorm(3, stats_mode="N")
            return bn(torch.zeros(0, 3, 4, 4)).shape, bn.running_mean, bn.running_var

        shape, mean, var = two_workers(work)[0]
        assert shape == (0, 3, 4, 4) and mean.tolist() == [0, 0, 0] and var.tolist() == [1, 1, 1]

    @pytest.mark.parametrize("mode", ["", "N"])
    def test_rounding_makes_no_negative_variance(self, mode, two_workers):
        # The mean square of such numbers is less exact than their variance.
        x = torch.linspace(999.99, 1000.01, 64).repeat(16).view(1, 1, 32, 32) * torch.ones(1, 64, 1, 1)
        x = x * torch.linspace(1, 30, 64)[:, None, None]

        def work(rank):
            bn = NaiveSyncBatchNorm(64, stats_mode=mode, momentum=1.0)
            return bn(x), bn.running_var

        for y, var in two_workers(work):
            assert y.isfinite().all() and (var >= 0).all()

    def test_empty_batch_needs_mode_n(self, two_workers):
        with pytest.raises(ValueError, match="naiveSyncBN_N"):
            two_workers(lambda rank: NaiveSyncBatchNorm(3)(torch.zeros(0, 3, 4, 4)))


@pytest.fixture
def two_workers(monkeypatch):
    """Run a function of the rank in two threads, between which ``all_reduce`` sums."""
    slots, barrier, here = {}, threading.Barrier(2, timeout=30), threading.local()

    def all_reduce(tensor):
        slots[here.rank] = tensor.clone()
        barrier.wait()
        tensor.copy_(slots[0] + slots[1])
        barrier.wait()

    def run(work):
        def as_rank(rank):
            here.rank = rank
            return work(rank)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(as_rank, range(2)))

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    return run
