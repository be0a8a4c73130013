"""The table before training, and the speed after the first steps."""

import logging
import types

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.config.unread import warn_of_unread
from detectron2.data import DatasetFromList, MapDataset, MetadataCatalog, build_detection_train_loader
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer
from detectron2.engine.hooks.run_summary import RunSummary, count_images, explain_data, explain_schedule


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    caplog.set_level(logging.INFO, logger="detectron2.engine.summary")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "detectron2.engine.summary"]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, batch):
        return {"loss": self.weight.sum()}


class Times(HookBase):
    """Reports given seconds for every step."""

    def __init__(self, step, data):
        self._step, self._data = step, data

    def after_step(self):
        self.trainer.storage.put_scalars(time=self._step, data_time=self._data)


class Trainer(SimpleTrainer):
    """Does not measure by itself."""

    def _write_metrics(self, loss_dict, data_time, prefix=""):
        pass


def train(summary, loader=((),) * 30, *, hooks=(), start=0, stop=12):
    model = Model()
    trainer = Trainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.5))
    trainer.register_hooks([*hooks, summary])
    trainer.train(start, stop)


def test_with_nothing_known(lines):
    train(RunSummary(), stop=1)
    assert lines() == [
        "This run:\n  iterations  1\n  optimizer   SGD, learning rate 0.5, 0.0 million trainable parameters\n"
        "  device      cpu, float32"
    ]


def test_table(lines):
    data = build_detection_train_loader(
        [{"n": i} for i in range(8)], mapper=lambda d: d, total_batch_size=4, aspect_ratio_grouping=False
    )
    train(RunSummary(4, {"learning rate": "0.5 (because)"}), data, start=2, stop=4)
    table = [line.split(maxsplit=1) for line in lines()[0].splitlines()[1:]]
    assert table[:5] == [
        ["iterations", "2 to 4"],
        ["images", "8"],
        ["batch", "4 images"],
        ["epochs", "2.0, of 2 iterations each"],
        ["optimizer", "SGD, 0.0 million trainable parameters"],
    ]
    assert ["learning", "rate  0.5 (because)"] in table


def test_table_of_an_unusual_run(lines, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    model = Model()
    other = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([{"params": [model.weight], "lr": 0.5}, {"params": [other], "lr": 0.125}])
    trainer = AMPTrainer(model, [], optimizer)
    trainer.accumulation_steps = 4
    trainer.register_hooks([RunSummary(16)])
    trainer._hooks[0].before_train()
    assert [line.split(maxsplit=1) for line in lines()[0].splitlines()[1:]][1:] == [
        ["batch", "16 images, 8 in each of 2 processes, in 4 parts one after the other"],
        ["optimizer", "AdamW, learning rates from 0.125 to 0.5, 0.0 million trainable parameters"],
        ["device", "cpu, float32 and bfloat16"],
    ]


@pytest.mark.parametrize(("waiting", "is_slow"), [(0.05, False), (0.4, True)])
def test_speed_and_the_hint_when_data_are_slow(lines, waiting, is_slow):
    train(RunSummary(8, warmup_iter=2, measured_iter=5), hooks=[Times(0.5, waiting)])
    speed, *hint = lines()[1:]
    assert "2.00 iterations per second (0.500 s each), 16.0 images per second; " in speed
    assert f"; {100 * waiting / 0.5:.0f} % of the time is spent waiting for data." in speed
    assert len(hint) == is_slow
    assert not hint or "DATALOADER.NUM_WORKERS" in hint[0]


def test_a_short_run_is_measured_to_its_end(lines):
    train(RunSummary(warmup_iter=2), hooks=[Times(0.25, 0.0)], stop=4)
    assert "4.00 iterations per second" in lines()[1]


def test_the_clock_is_used_where_steps_are_not_timed(lines, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(
        "detectron2.engine.hooks.run_summary.time", types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    )
    train(RunSummary(warmup_iter=2, measured_iter=4))
    assert "(0.250 s each)" in lines()[1]  # one tick in four steps


def test_other_processes_are_silent(lines, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    summary = RunSummary(warmup_iter=1, measured_iter=1)
    summary.trainer = types.SimpleNamespace(start_iter=0, max_iter=3, iter=0)
    summary.before_train()
    for summary.trainer.iter in range(3):
        summary.after_step()
    assert lines() == []


@pytest.mark.parametrize("grouping", [False, True])
def test_images_of_our_loaders(grouping):
    data = [{"width": 1, "height": 1}] * 5
    loader = build_detection_train_loader(data, mapper=lambda d: d, total_batch_size=2, aspect_ratio_grouping=grouping)
    assert count_images(loader) == 5


def test_images_of_other_loaders():
    assert count_images(None) is None
    assert count_images([1, 2]) is None
    data = MapDataset(DatasetFromList([]), lambda x: x)
    assert count_images(torch.utils.data.DataLoader(list(range(7)), batch_size=2)) == 7
    assert count_images(torch.utils.data.DataLoader(torch.utils.data.Subset(list(range(7)), [0, 1]))) == 2
    assert count_images(types.SimpleNamespace(dataset=data)) == 0


def test_explanation_of_the_data():
    cfg = settings("DATASETS.TRAIN", ("nobody_knows",), "INPUT.FORMAT", "RGB")
    assert explain_data(cfg) == {"channels": "RGB (INPUT.FORMAT)"}
    assert "nobody_knows" not in MetadataCatalog.list()
    try:
        MetadataCatalog.get("summary_of_data").thing_classes = [f"c{i}" for i in range(11)]
        cfg.DATASETS.TRAIN = ("summary_of_data",)
        cfg.INPUT.FORMAT, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, cfg.TEST.DETECTIONS_PER_IMAGE = None, False, 7
        assert explain_data(cfg) == {
            "channels": "as in the files (INPUT.FORMAT)",
            "labels": "0 c0, 1 c1, 2 c2, 3 c3, 4 c4, 5 c5, 6 c6, 7 c7, 8 c8, ..., 10 c10",
            "empty images": "used (DATALOADER.FILTER_EMPTY_ANNOTATIONS)",
            "detections": "7 of an image at most (TEST.DETECTIONS_PER_IMAGE)",
        }
    finally:
        MetadataCatalog.remove("summary_of_data")


def settings(*pairs):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", 0.02, "SOLVER.MAX_ITER", 100, "SOLVER.STEPS", (60, 80), *pairs])
    return cfg


@pytest.mark.parametrize(
    ("pairs", "schedule"),
    [
        (("SOLVER.STEPS", (), "SOLVER.WARMUP_ITERS", 0), "constant"),
        (("SOLVER.WARMUP_ITERS", 10), "warm-up from 2e-05 for 10 iterations, then times 0.1 at 60, 80"),
        (("SOLVER.STEPS", (60,)), "warm-up from 2e-05 for 100 iterations, then times 0.1 at 60"),
        (
            ("SOLVER.STEPS", (), "SOLVER.WARMUP_METHOD", "constant", "SOLVER.WARMUP_ITERS", 10),
            "warm-up at 2e-05 for 10 iterations, then constant",
        ),
        (("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.WARMUP_ITERS", 0), "half a cosine to 0"),
        (
            ("SOLVER.LR_SCHEDULER_NAME", "WarmupStepWithFixedGammaLR", "SOLVER.WARMUP_ITERS", 0),
            "3 times multiplied by 0.1",
        ),
    ],
)
def test_explanation_of_the_schedule(pairs, schedule):
    assert explain_schedule(settings(*pairs)) == {"learning rate": "0.02 (SOLVER.BASE_LR)", "schedule": schedule}


def test_explanation_of_a_scaled_and_of_a_high_rate():
    given = settings("SOLVER.REFERENCE_WORLD_SIZE", 8)
    used = settings("SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.0025)
    assert explain_schedule(used, given)["learning rate"] == (
        "0.0025: SOLVER.BASE_LR 0.02 is for 16 images on 8 processes, scaled to 2 images"
    )
    assert "note" not in explain_schedule(used, given)
    high = settings("SOLVER.IMS_PER_BATCH", 2)
    assert "usually trained with 0.0025 for 2 images" in explain_schedule(high)["note"]
    high.merge_from_list(["SOLVER.OPTIMIZER", "AdamW"])
    assert "note" not in explain_schedule(high)


@pytest.mark.parametrize(
    ("name", "unread"),
    [
        ("WarmupMultiStepLR", {"SOLVER.BASE_LR_END = 0.001", "SOLVER.NUM_DECAYS = 5"}),
        ("WarmupCosineLR", {"SOLVER.GAMMA = 0.5", "SOLVER.NUM_DECAYS = 5"}),
        ("WarmupStepWithFixedGammaLR", {"SOLVER.BASE_LR_END = 0.001"}),
    ],
)
def test_the_explanation_reads_what_the_schedule_reads(name, unread, caplog):
    """Otherwise no warning tells of keys without effect."""
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR_END", 0.001, "SOLVER.NUM_DECAYS", 5, "SOLVER.GAMMA", 0.5])
    cfg.merge_from_list(["SOLVER.LR_SCHEDULER_NAME", name, "SOLVER.STEPS", (7,)])
    explain_schedule(cfg)
    warn_of_unread(cfg, None, "SOLVER")
    assert {line.strip() for line in caplog.text.splitlines()[1:]} == unread
