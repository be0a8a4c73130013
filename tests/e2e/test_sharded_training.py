"""A model that is split over two processes is trained, evaluated, saved and resumed like one that is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer, read_description
from detectron2.engine import DefaultTrainer, hooks, launch
from detectron2.engine.sharding import is_sharded, whole_weights
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from tests.e2e.conftest import _tiny_config, skip_unless_cpus_can_shard
from tests.e2e.test_distributed import EVERYTHING, _register, _write_data

# Frozen parameters, statistics of batch norm that training changes, and parameters of all kinds.
_OPTIONS = [
    "MODEL.RESNETS.NORM", "FrozenBN",
    "SOLVER.MAX_ITER", 3,
    "SOLVER.CHECKPOINT_PERIOD", 1,
    "SOLVER.BASE_LR", 0.005,
    "DATASETS.TEST", ("distributed_five",),
]  # fmt: skip


def _train(output, *options, seed=3):
    cfg = _tiny_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", *EVERYTHING, *_OPTIONS, *options)
    cfg.OUTPUT_DIR = str(output)
    seed_all_rng(seed + comm.get_rank())
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    return trainer


def _shares_do_not_matter(model):
    """Run a sharded model on one image in one process and on three in the other, and again as before."""
    image = {"image": torch.zeros(3, 64, 64)}
    model.eval()
    with torch.no_grad(), whole_weights(model):
        for _ in range(3 if comm.is_main_process() else 1):
            model([image])
    comm.synchronize()
    return all(type(p).__name__ != "Parameter" for p in model.parameters() if p.requires_grad)


def _everything(folder):
    folder = Path(folder)
    _register(folder)
    best = ["TEST.BEST_METRIC", "validation/total_loss", "TEST.BEST_MODE", "min", "TEST.VALIDATION_LOSS_PERIOD", 1]
    more = ["SOLVER.EMA_DECAY", 0.5, "TEST.EVAL_PERIOD", 2, *best]
    ddp = _train(folder / "ddp", *more)
    sharded = _train(folder / "sharded", "TRAIN.SHARD_MODEL", True, *more)
    local = sum(getattr(p, "_local_tensor", p).numel() for p in sharded.model.parameters())
    found = {
        "is_sharded": [is_sharded(ddp.model), is_sharded(sharded.model)],
        "is_wrapped": [hasattr(t.model, "module") for t in (ddp, sharded)],
        "share": local / sum(p.numel() for p in ddp.model.parameters()),
        "is_split_again": _shares_do_not_matter(sharded.model),
    }
    if comm.is_main_process():
        (folder / "resumed").mkdir()
        for name in ("model_0000001.pth", "model_best_history.json"):
            shutil.copy(folder / "sharded" / name, folder / "resumed")
        (folder / "resumed" / "last_checkpoint").write_text("model_0000001.pth")
    comm.synchronize()
    more += ["TRAIN.SHARD_MODEL", True, "SOLVER.CHECKPOINT_FORMAT", "safetensors"]
    found["start"] = _train(folder / "resumed", *more, seed=50).start_iter
    torch.save(found, folder / f"found_{comm.get_rank()}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return (folder, what each process found)."""
    skip_unless_cpus_can_shard()
    folder = tmp_path_factory.mktemp("sharded")
    _write_data(folder)
    launch(_everything, 2, args=(str(folder),))
    return folder, [torch.load(folder / f"found_{rank}.pt", weights_only=True) for rank in (0, 1)]


def _records(folder):
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_each_process_has_half_of_the_model(runs):
    for found in runs[1]:
        assert found["is_sharded"] == [False, True]
        assert found["is_wrapped"] == [True, False]
        assert found["share"] < 0.6
        assert found["is_split_again"]


def test_losses_and_results_are_those_of_data_parallel_training(runs):
    one, two = _records(runs[0] / "ddp"), _records(runs[0] / "sharded")
    assert len(one) == len(two) >= 1
    seen = set()
    for a, b in zip(one, two, strict=True):
        names = {n for n in a if "loss" in n or n.startswith("bbox/")}
        seen |= names
        for name in names:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-6, nan_ok=True), name
    assert seen >= {"total_loss", "validation/total_loss", "bbox/AP"}


@pytest.mark.parametrize("name", ["model_0000001", "model_final", "model_final_ema", "model_best"])
def test_checkpoints_are_whole(runs, name):
    one, two = (torch.load(runs[0] / kind / f"{name}.pth", weights_only=True) for kind in ("ddp", "sharded"))
    assert one["model"].keys() == two["model"].keys() and one.keys() == two.keys()
    for key, value in one["model"].items():
        torch.testing.assert_close(two["model"][key], value, rtol=1e-3, atol=1e-5, msg=key)
    cfg = read_description(str(runs[0] / "sharded" / f"{name}.pth")).load_config()
    model = DefaultTrainer.build_model(cfg)
    DetectionCheckpointer(model).load_for_inference(str(runs[0] / "sharded" / f"{name}.pth"))


def test_optimizer_state_is_whole(runs):
    one, two = (torch.load(runs[0] / kind / "model_final.pth", weights_only=True) for kind in ("ddp", "sharded"))
    one, two = (x["trainer"]["_trainer"]["optimizer"]["state"] for x in (one, two))
    assert one.keys() == two.keys() and len(one) > 10
    for key, value in one.items():
        assert two[key]["momentum_buffer"].shape == value["momentum_buffer"].shape


def test_resume_gives_the_same(runs):
    folder, found = runs
    assert [x["start"] for x in found] == [2, 2]
    models = []
    for place, ending in ((folder / "sharded", "pth"), (folder / "resumed", "safetensors")):
        for name in ("model_final", "model_final_ema"):
            path = str(place / f"{name}.{ending}")
            model = DefaultTrainer.build_model(read_description(path).load_config())
            DetectionCheckpointer(model).load_for_inference(path)
            models.append(model.state_dict())
    # Gathering adds up numbers in an order of its own; a step without the former momentum would be far off.
    for key, value in models[0].items():
        torch.testing.assert_close(models[2][key], value, rtol=1e-5, atol=1e-6, msg=key)
        torch.testing.assert_close(models[3][key], models[1][key], rtol=1e-5, atol=1e-6, msg=key)
    whole, resumed = (
        json.loads((folder / k / "model_best_history.json").read_text())["values"] for k in ("sharded", "resumed")
    )
    assert [at for at, _ in whole] == [at for at, _ in resumed] == [0, 1, 2]
    assert [v for _, v in resumed] == pytest.approx([v for _, v in whole], rel=1e-5)


def test_one_process_is_not_sharded(tmp_path):
    from detectron2.engine import shard_model

    model = torch.nn.Linear(1, 1)
    assert shard_model(model) is model and not is_sharded(model)
    with whole_weights(model):
        assert model.weight.numel() == 1
    assert hooks.BestCheckpointer(1, DetectionCheckpointer(model, str(tmp_path)), "x")._is_joint is False
