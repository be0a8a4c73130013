"""Two processes on the CPU do what one does: training, evaluation, batch norm, sharded models."""

import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler
from PIL import Image
from torch import nn

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.distributed.launching import run_processes
from detectron2.engine import DefaultTrainer, ShardedCheckpointer, create_ddp_model, launch, lazy_train, shard_model
from detectron2.engine.launch import _find_free_port
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling.backbone import ViT
from detectron2.solver import get_default_optimizer_params
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tests.e2e.conftest import _tiny_config, skip_unless_cpus_can_shard

# Nothing is left to chance: every anchor and every proposal is in the loss, so that it is a mean over images.
EVERYTHING = [
    "MODEL.RPN.NMS_THRESH", 1.0,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 10000,
    "MODEL.RPN.POSITIVE_FRACTION", 1.0,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0,
    "MODEL.ROI_HEADS.NUM_CLASSES", 2,
    "INPUT.RANDOM_FLIP", "none",
    "DATALOADER.ASPECT_RATIO_GROUPING", False,
    "DATASETS.TRAIN", ("distributed_five",),
    "DATASETS.TEST", ("distributed_five", "distributed_one"),
    "SOLVER.BASE_LR", 0.05,
    "SOLVER.WARMUP_ITERS", 0,
]  # fmt: skip


def _write_data(folder):
    """Five images with two objects each, so that the number of proposals is the same in every image."""
    generator = np.random.default_rng(0)
    categories = [{"id": i, "name": name} for i, name in enumerate("ab", start=1)]
    images, annotations = [], []
    for i in range(5):
        Image.fromarray(generator.integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 96, "width": 128})
        for j in (1, 2):
            box = [*generator.integers(0, 40, 2).tolist(), *generator.integers(30, 55, 2).tolist()]
            annotations.append(
                {"id": 2 * i + j, "image_id": i, "category_id": j, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            )
    for name, kept in (("five", images), ("one", images[:1])):
        ids = {image["id"] for image in kept}
        content = {"images": kept, "annotations": [a for a in annotations if a["image_id"] in ids]}
        (folder / f"{name}.json").write_text(json.dumps({**content, "categories": categories}))


def _register(folder):
    for name in ("five", "one"):
        register_coco_instances(f"distributed_{name}", {}, f"{folder}/{name}.json", str(folder))


def _config(output):
    cfg = _tiny_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", *EVERYTHING)
    cfg.OUTPUT_DIR = str(output)
    return cfg


def _train(output):
    seed_all_rng(3 + comm.get_rank())
    trainer = DefaultTrainer(_config(output))
    with mock.patch.object(DefaultTrainer, "test", return_value={}):
        trainer.train()
    return {"is_ddp": hasattr(trainer.model, "module")}


def _evaluate(output):
    cfg = _config(output)
    torch.manual_seed(4)
    model = DefaultTrainer.build_model(cfg)
    with mock.patch.object(comm, "gather", wraps=comm.gather) as gather:
        results = DefaultTrainer.test(cfg, model)
    return {"results": {name: dict(x) for name, x in results.items()}, "gathered": gather.call_count}


def _share(x, first):
    """This process's part of a batch, of which rank 0 has the first so many."""
    if comm.get_world_size() == 1:
        return x
    return x[:first] if comm.is_main_process() else x[first:]


def _normalize():
    """Batch norm over all processes: output, gradient of the input, statistics."""
    found = {}
    torch.manual_seed(5)
    everything, weight = torch.randn(4, 3, 5, 6), torch.randn(4, 3, 5, 6)
    for mode, first in (("", 2), ("N", 3), ("N", 4)):
        norm = NaiveSyncBatchNorm(3, stats_mode=mode) if comm.get_world_size() > 1 else nn.BatchNorm2d(3)
        x = _share(everything, first).clone().requires_grad_()
        out = norm(x)
        (out * _share(weight, first)).sum().backward()
        found[f"{mode}{first}"] = [out.detach(), x.grad, norm.running_mean]
    return found


def _compress():
    """The gradient that every process gets when theirs are 1.002 and 2.004."""
    found = {}
    for name, options in (("none", {}), ("fp16", {"fp16_compression": True}), ("bf16", {"bf16_compression": True})):
        model = create_ddp_model(nn.Linear(1, 1, bias=False), **options)
        model(torch.full((1, 1), 1.002 * (1 + comm.get_rank()))).sum().backward()
        found[name] = float(model.module.weight.grad)
    return found


class TinyViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.vit = ViT(32, 8, embed_dim=16, depth=2, num_heads=2, use_rel_pos=True, pretrain_img_size=32)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, images):
        return self.inference(images).square().mean()

    def inference(self, images):
        return self.head(self.vit(images)["last_feat"])


def _vit_step(model, optimizer):
    generator = torch.Generator().manual_seed(6)
    loss = model(_share(torch.randn(2, 3, 32, 32, generator=generator), 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return sum(comm.all_gather(loss.item())) / comm.get_world_size()


def _vit():
    torch.manual_seed(7 + comm.get_rank())
    model = shard_model(TinyViT())
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _shard(output):
    """Two steps, a checkpoint, a third step; and the third step once more, from the checkpoint."""
    model, optimizer = _vit()
    losses = [_vit_step(model, optimizer) for _ in range(2)]
    ShardedCheckpointer(model, str(output), optimizer=optimizer).save("whole", iteration=1)
    losses.append(_vit_step(model, optimizer))
    model, optimizer = _vit()
    rest = ShardedCheckpointer(model, optimizer=optimizer).load(f"{output}/whole.pth")
    resumed = _vit_step(model, optimizer)
    with torch.no_grad():
        mean = model.inference(torch.zeros(1, 3, 32, 32)).mean().item()
    local = sum(getattr(p, "_local_tensor", p).numel() for p in model.parameters())
    is_plain = create_ddp_model(model) is model
    return {
        "losses": losses, "resumed": resumed, "mean": mean, "rest": rest, "size": local, "is_plain": is_plain
    }  # fmt: skip


def _two_batches():
    generator = torch.Generator().manual_seed(8)
    return [_share(torch.randn(2, 3, 32, 32, generator=generator), 1) for _ in range(2)]


def _train_lazily(output):
    """Two steps, then two more from the checkpoint."""
    cfg = LazyConfig.load(model_zoo.get_config_file("common/train.py"))
    cfg.train.update(output_dir=str(output), init_checkpoint="", max_iter=2, device="cpu", eval_period=0)
    cfg.dataloader = {"train": L(_two_batches)()}
    cfg.model = L(shard_model)(model=L(TinyViT)())
    params = L(get_default_optimizer_params)(base_lr=0.1)
    cfg.optimizer = L(torch.optim.SGD)(params=params, lr=0.1, momentum=0.9)
    cfg.lr_multiplier = L(ConstantParamScheduler)(value=1.0)
    seed_all_rng(9 + comm.get_rank())
    lazy_train(cfg)
    cfg.train.max_iter = 4
    lazy_train(cfg, resume=True)


def _everything(folder):
    """What one and two processes do alike."""
    folder = Path(folder)
    _register(folder)
    output = folder / str(comm.get_world_size())
    found = {
        "ranks": (comm.get_rank(), comm.get_local_rank(), comm.get_local_size()),
        "train": _train(output),
        "evaluate": _evaluate(output / "evaluated"),
        "normalize": _normalize(),
        "shard": _shard(output),
    }
    _train_lazily(output / "lazy")
    if comm.get_world_size() > 1:
        found["compress"] = _compress()
        with pytest.raises(ValueError, match="not both"):
            create_ddp_model(nn.Linear(1, 1), fp16_compression=True, bf16_compression=True)
        with pytest.raises(ValueError, match="Linear has no blocks to split"):
            shard_model(nn.Linear(1, 1))
    return found


def _as_under_torchrun(local_rank, port, folder):
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(local_rank), LOCAL_RANK=str(local_rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    found = launch(_everything, 1, args=(folder,))
    torch.save(found, f"{folder}/{local_rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return (folder, what one process found, what each of two found)."""
    skip_unless_cpus_can_shard()
    folder = tmp_path_factory.mktemp("distributed")
    _write_data(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = _everything(str(folder))
    finally:
        torch.set_num_threads(threads)
        for name in ("five", "one"):
            DatasetCatalog.remove(f"distributed_{name}")
    run_processes(_as_under_torchrun, 2, 0, (_find_free_port(), str(folder)))
    return folder, one, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _weights(folder, name="model_final"):
    return torch.load(folder / f"{name}.pth", weights_only=True)["model"]


def test_processes_that_exist_already_are_joined(runs):
    assert [x["ranks"] for x in runs[2]] == [(0, 0, 2), (1, 1, 2)]
    assert [x["train"]["is_ddp"] for x in (runs[1], *runs[2])] == [False, True, True]


def test_training_gives_the_same_losses_and_weights(runs):
    one, two = ([json.loads(s) for s in (runs[0] / n / "metrics.json").read_text().splitlines()] for n in "12")
    assert len(one) == len(two) >= 1
    for a, b in zip(one, two, strict=True):
        names = {name for name in a if "loss" in name}
        assert names >= {"total_loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
        for name in names:
            assert b[name] == pytest.approx(a[name], rel=1e-4), name
    a, b = _weights(runs[0] / "1"), _weights(runs[0] / "2")
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-4, atol=1e-6, msg=name)
    for name in ("proposal_generator.rpn_head.objectness_logits.bias", "roi_heads.box_predictor.cls_score.bias"):
        assert a[name].abs().max() > 1e-3  # they began at 0


def test_evaluation_gives_the_same_results_and_gathers_once(runs):
    _, one, (main, other) = runs
    assert set(main["evaluate"]["results"]) == {"distributed_five", "distributed_one"}
    np.testing.assert_equal(main["evaluate"]["results"], one["evaluate"]["results"])
    assert not any(other["evaluate"]["results"].values())
    assert main["evaluate"]["gathered"] == other["evaluate"]["gathered"] == 2  # data sets; one process had no image
    for name in ("distributed_five", "distributed_one"):
        folders = (runs[0] / n / "evaluated" / "inference" / name for n in "12")
        one, two = (json.loads((folder / "coco_instances_results.json").read_text()) for folder in folders)
        assert one == two
        assert one


@pytest.mark.parametrize(("case", "first"), [("2", 2), ("N3", 3), ("N4", 4)])
def test_batch_norm_over_processes_is_that_of_the_whole_batch(runs, case, first):
    out, grad, mean = runs[1]["normalize"][case]
    for found, part in zip(runs[2], (slice(0, first), slice(first, 4)), strict=True):
        other_out, other_grad, other_mean = found["normalize"][case]
        torch.testing.assert_close(other_out, out[part], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other_grad, grad[part], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(other_mean, mean)


def test_compressed_gradients(runs):
    for found in runs[2]:
        assert found["compress"]["none"] == pytest.approx(1.503)
        assert found["compress"]["fp16"] == 1539 / 1024  # 10 bits after the point: 1026/1024 and 2052/1024
        assert found["compress"]["bf16"] == 1.5  # 7 bits


def test_a_sharded_model_trains_like_a_whole_one(runs):
    one, two = runs[1]["shard"], [x["shard"] for x in runs[2]]
    for found in two:
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert found["resumed"] == pytest.approx(found["losses"][2], rel=1e-5)  # momentum was restored
        assert found["mean"] == pytest.approx(one["mean"], rel=1e-3)
        assert found["rest"] == {"iteration": 1}
        assert found["is_plain"]
    assert one["losses"][0] > one["losses"][2]
    assert sum(x["size"] for x in two) == one["size"]
    assert max(x["size"] for x in two) < 0.6 * one["size"]


def test_a_sharded_model_in_a_lazy_config(runs):
    one, two = (torch.load(runs[0] / n / "lazy" / "model_final.pth", weights_only=True) for n in "12")
    assert one["iteration"] == two["iteration"] == 3
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_checkpoint_of_a_sharded_model_is_whole(runs):
    model = TinyViT()
    DetectionCheckpointer(model).load_for_inference(str(runs[0] / "2" / "whole.pth"))
    for name, value in _weights(runs[0] / "1", "whole").items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
