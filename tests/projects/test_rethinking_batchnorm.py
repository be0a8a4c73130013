"""Rethinking "Batch" in BatchNorm: every config loads and builds; the heads that two of them define work."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import OmegaConf
from torch import nn

from detectron2.config import LazyConfig, instantiate
from detectron2.layers import CycleBatchNormList, ShapeSpec
from detectron2.utils import comm

R_CNN = [
    "mask_rcnn_BNhead.py",
    "mask_rcnn_BNhead_batch_stats.py",
    "mask_rcnn_BNhead_shuffle.py",
    "mask_rcnn_SyncBNhead.py",
]
RETINANET = ["retinanet_SyncBNhead.py", "retinanet_SyncBNhead_SharedTraining.py"]


@pytest.fixture(scope="module")
def configs(repo_root):
    return repo_root / "projects" / "Rethinking-BatchNorm" / "configs"


def load(folder, name):
    return LazyConfig.load(str(folder / name))


def test_no_config_is_left_out(configs):
    assert {p.name for p in configs.glob("*.py")} == {*R_CNN, *RETINANET}


@pytest.mark.parametrize("name", R_CNN + RETINANET)
def test_configs_build(configs, name):
    cfg = load(configs, name)
    assert set(cfg) == {"model", "dataloader", "lr_multiplier", "optimizer", "train"}
    assert cfg.train.max_iter == cfg.lr_multiplier.scheduler.milestones[-1] == 270000
    assert f"projects/Rethinking-BatchNorm/configs/{name} " in (configs / name).read_text().splitlines()[1]
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert not any(p.requires_grad for p in model.backbone.bottom_up.stem.parameters())
    instantiate(cfg.lr_multiplier)


@pytest.mark.parametrize(
    ("name", "kind"),
    list(zip(R_CNN, [nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm], strict=True)),
)
def test_norms_of_the_region_heads(configs, name, kind):
    with torch.device("meta"):
        model = instantiate(load(configs, name).model)
    for head in (model.roi_heads.box_head, model.roi_heads.mask_head):
        norms = [m for m in head.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        assert [type(m) for m in norms] == [kind] * 4
        assert all((m.running_mean is None) == ("batch_stats" in name) for m in norms)


def small_box_head(cfg):
    """The box head of a config with four channels."""
    cfg = OmegaConf.to_container(cfg.model.roi_heads.box_head, resolve=False)
    cfg.update(input_shape=ShapeSpec(channels=4, height=3, width=3), conv_dims=[4, 4], fc_dims=[5])
    return instantiate(cfg)


def test_batch_statistics_in_inference(configs):
    head = small_box_head(load(configs, "mask_rcnn_BNhead_batch_stats.py"))
    x = torch.randn(6, 4, 3, 3)
    expected = head(x)
    torch.testing.assert_close(head.eval()(x), expected)
    assert not torch.allclose(head(x[:3]), expected[:3])
    assert head(x[:0]).shape == (0, 5)


def test_shuffling_alone_changes_nothing(configs):
    plain = small_box_head(load(configs, "mask_rcnn_BNhead.py"))
    head = small_box_head(load(configs, "mask_rcnn_BNhead_shuffle.py"))
    head.load_state_dict(plain.state_dict())
    x = torch.randn(6, 4, 3, 3)
    torch.testing.assert_close(head(x), plain(x))
    torch.testing.assert_close(head.eval()(x), plain.eval()(x))


def check_shuffling(rank, run):
    """What each of two workers does and must see."""
    for count in ([5, 2], [3, 0], [0, 0]):
        x = (torch.arange(count[rank] * 2.0).view(-1, 2) + 100 * rank).requires_grad_()
        seen = []

        def function(rows, seen=seen):
            seen.append(len(rows))
            return rows.square()[:, :, None]

        out = run(function, x)
        assert torch.equal(out, x.square()[:, :, None])
        (out * (rank + 1)).sum().backward()
        assert torch.equal(x.grad, 2 * x * (rank + 1))
        assert seen == [(sum(count) + 1 - rank) // 2]  # an equal share


def run_on_shuffled(folder):
    head = load(Path(folder), "mask_rcnn_BNhead_shuffle.py").model.roi_heads.box_head._target_
    return head.forward.__globals__["run_on_shuffled"]


def test_shuffling_between_two_threads(configs, monkeypatch):
    """Two workers as threads of this process, which talk through a list."""
    here, barrier, box = threading.local(), threading.Barrier(2, timeout=30), [None, None]

    def exchange(value):
        box[here.rank] = value
        barrier.wait()
        values = list(box)
        barrier.wait()
        return values

    def all_gather(outputs, x):
        for output, value in zip(outputs, exchange(x), strict=True):
            output.copy_(value)

    def all_reduce(x):
        x.copy_(sum(exchange(x.clone())))

    monkeypatch.setattr(comm, "get_rank", lambda: here.rank)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "all_gather", exchange)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    run = run_on_shuffled(configs)

    def work(rank):
        here.rank = rank
        try:
            check_shuffling(rank, run)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        for result in [pool.submit(work, rank) for rank in range(2)]:
            result.result()


def _work_in_process(rank, address, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    check_shuffling(rank, run_on_shuffled(folder))
    dist.destroy_process_group()


@pytest.mark.slow
def test_shuffling_between_two_processes(configs, tmp_path):
    mp.spawn(_work_in_process, args=(f"file://{tmp_path}/rendezvous", str(configs)), nprocs=2)


def retinanet_head(cfg):
    cfg = OmegaConf.to_container(cfg.model.head, resolve=False)
    cfg.update(input_shape=[ShapeSpec(channels=4)] * 2, conv_dims=[4, 4], num_classes=3, num_anchors=2)
    return instantiate(cfg)


def test_levels_apart(configs):
    head = retinanet_head(load(configs, RETINANET[0]))
    norms = [m for m in head.modules() if isinstance(m, CycleBatchNormList)]
    assert len(norms) == 4 and all(len(m) == 2 for m in norms)


def test_levels_together(configs):
    head = retinanet_head(load(configs, RETINANET[1]))
    assert type(head.cls_subnet[1]) is nn.SyncBatchNorm
    maps = [torch.randn(2, 4, 6, 5), torch.randn(2, 4, 3, 3) * 5 + 1]
    normalize = type(head).forward.__globals__["normalize_together"]
    norm = nn.BatchNorm2d(4)
    found = normalize(norm, maps)
    cells = np.concatenate([m.permute(1, 0, 2, 3).reshape(4, -1).numpy() for m in maps], axis=1)
    mean, std = cells.mean(axis=1)[:, None, None], np.sqrt(cells.var(axis=1) + 1e-5)[:, None, None]
    for x, y in zip(maps, found, strict=True):
        np.testing.assert_allclose(y.detach().numpy(), (x.numpy() - mean) / std, rtol=1e-4, atol=1e-5)
    logits, deltas = head(maps)
    assert [x.shape for x in logits] == [(2, 6, 6, 5), (2, 6, 3, 3)]
    assert [x.shape for x in deltas] == [(2, 8, 6, 5), (2, 8, 3, 3)]
    # In inference the layers are those of any RetinaNet head.
    head.eval()
    for x, y in zip(maps, head(maps)[0], strict=True):
        torch.testing.assert_close(y, head.cls_score(head.cls_subnet(x)))
