from pathlib import Path

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, auto_batch
from detectron2.engine.auto_batch import largest_batch, largest_inputs, set_largest_batch
from detectron2.inference.loading import load_config
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.projects.mask2former import MaskFormerTrainer


class Limited(nn.Module):
    """Fits five images."""

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.limit = cfg.MODEL.RETINANET.NUM_CLASSES
        self.asked = []

    def forward(self, batch):
        if len(batch) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"loss": self.weight.sum()}


META_ARCH_REGISTRY._do_register("LimitedForAutoBatch", Limited)


def config(limit=5, **solver):
    cfg = get_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "LimitedForAutoBatch"
    cfg.MODEL.RETINANET.NUM_CLASSES = limit
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (20, 24), 40
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Build models on the CPU for configs that name a GPU."""
    build = auto_batch.build_model

    def build_on_cpu(cfg):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        return build(cfg)

    monkeypatch.setattr(auto_batch, "build_model", build_on_cpu)

    def make(**kwargs):
        cfg = config(**kwargs)
        cfg.MODEL.DEVICE = "cuda"
        return cfg

    return make


@pytest.mark.parametrize("most", [0, 1, 2, 3, 5, 11, 64, 100, 1000])
def test_the_largest_is_found_to_within_an_eighth(most):
    asked = []
    found = largest_batch(lambda n: asked.append(n) or n <= most, 64)
    best = min(most, 64)
    assert found <= best < found + max(1, found // 8) + (found == 0)
    assert max(asked, default=0) <= 64 and len(asked) == len(set(asked)) <= 12


def test_the_batch_is_set_and_the_rate_stays(as_on_a_gpu):
    cfg = as_on_a_gpu(IMS_PER_BATCH=16, BASE_LR=0.02, REFERENCE_WORLD_SIZE=8)
    cfg.freeze()
    state = torch.get_rng_state()
    text = set_largest_batch(cfg)
    assert cfg.SOLVER.IMS_PER_BATCH == 5 and cfg.SOLVER.BASE_LR == 0.02 and cfg.SOLVER.REFERENCE_WORLD_SIZE == 1
    assert text.startswith("SOLVER.IMS_PER_BATCH is 5 in place of 16, 5 on each GPU, the most that fit.")
    assert "BASE_LR stays 0.02" in text and cfg.is_frozen()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_rate_follows_the_batch_when_asked(as_on_a_gpu):
    cfg = as_on_a_gpu(limit=32, IMS_PER_BATCH=16, BASE_LR=0.02)
    text = set_largest_batch(cfg, scale_lr=True)
    assert pytest.approx(0.04) == cfg.SOLVER.BASE_LR and text.endswith("SOLVER.BASE_LR is 0.04 in place of 0.02.")


def test_a_part_of_the_memory_stays_free(as_on_a_gpu, monkeypatch):
    shares = {1: 0.2, 2: 0.5, 3: 0.89, 4: 0.95}
    tried = []
    original = auto_batch._try_steps

    def try_steps(cfg, model, optimizer, batch):
        tried.append(len(batch))
        return original(cfg, model, optimizer, batch)

    monkeypatch.setattr(auto_batch, "_try_steps", try_steps)
    monkeypatch.setattr(auto_batch, "_share_of_memory", lambda: shares[tried[-1]])
    cfg = as_on_a_gpu()
    set_largest_batch(cfg)
    assert cfg.SOLVER.IMS_PER_BATCH == 3 and tried == [1, 2, 4, 3]


def test_not_one_image_fits(as_on_a_gpu, monkeypatch):
    monkeypatch.setattr(auto_batch, "_share_of_memory", lambda: 0.91)
    with pytest.raises(ValueError, match=r"Not one image of 24 x 40 pixels fits"):
        set_largest_batch(as_on_a_gpu())


def test_a_detector_is_tried(cfg, monkeypatch):
    monkeypatch.setattr(auto_batch, "_share_of_memory", iter([0.5, 1.0]).__next__)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 96
    assert auto_batch._images_that_fit(cfg, DefaultTrainer) == 1


@pytest.mark.parametrize("jitter", [False, True])
def test_a_model_of_a_project_with_the_optimizer_of_its_trainer(monkeypatch, jitter):
    built = []
    monkeypatch.setattr(auto_batch, "_share_of_memory", iter([0.5, 1.0]).__next__)
    path = Path(__file__).parents[2] / "projects/Mask2Former/configs/shapes/maskformer2_R18_shapes.yaml"
    small = [
        "MODEL.RESNETS.STEM_OUT_CHANNELS",
        16,
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        16,
        "INPUT.MIN_SIZE_TRAIN",
        (64,),
    ]
    more = ["INPUT.DATASET_MAPPER_NAME", "coco_instance_lsj", "INPUT.IMAGE_SIZE", 64] if jitter else []
    cfg = load_config(str(path), [*small, "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96, *more])
    assert largest_inputs(cfg)["image"].shape == (3, 64, 64 if jitter else 96)

    class Trainer(MaskFormerTrainer):
        @classmethod
        def build_optimizer(cls, cfg, model):
            built.append(super().build_optimizer(cfg, model))
            return built[0]

    assert auto_batch._images_that_fit(cfg, Trainer) == 1 and isinstance(built[0], torch.optim.AdamW)


def test_what_cannot_be_made_up(cfg):
    cfg.MODEL.META_ARCHITECTURE = "NeedsMore"
    model = Limited(config())
    model.forward = lambda batch: batch[0]["center"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"what NeedsMore learns from \(center\)\. Set SOLVER\.IMS"):
        auto_batch._try_steps(cfg, model, optimizer, [{}])


def test_what_it_is_for():
    with pytest.raises(ValueError, match=r"memory of a GPU, but MODEL.DEVICE is 'cpu'"):
        set_largest_batch(config())
    with pytest.raises(ValueError, match="needs a YAML config"):
        set_largest_batch({"train": {}})


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_the_largest_input_has_all_that_a_model_learns_from(tiny_cfg_of_all, mask_format):
    cfg = tiny_cfg_of_all
    cfg.INPUT.MASK_FORMAT = mask_format
    inputs = largest_inputs(cfg)
    assert inputs["image"].shape == (3, 24, 40) and inputs["sem_seg"].shape == (24, 40)
    target = inputs["instances"]
    assert set(target.get_fields()) == {"gt_boxes", "gt_classes", "gt_masks", "gt_keypoints"}
    assert len(target) == 130 and target.image_size == (24, 40)
    box = target.gt_boxes.tensor
    assert (box >= 0).all() and (box[:, 2] <= 40).all() and (box[:, 3] <= 24).all()


@pytest.fixture
def tiny_cfg_of_all():
    cfg = config()
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    return cfg
