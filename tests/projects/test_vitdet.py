"""ViTDet: every config builds; a small version of one trains, infers, and loads pretrained weights."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data.catalog import MetadataCatalog
from detectron2.structures import BitMasks, Boxes, Instances

ROOT = Path(__file__).resolve().parents[2] / "projects" / "ViTDet" / "configs"
FILES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.rglob("*.py"))
SIZES_HW = [(64, 80), (50, 96)]


def tiny_config(name="COCO/mask_rcnn_vitdet_b_100ep.py"):
    """Two blocks of width 16 and images padded to squares of 96 pixels."""
    cfg = LazyConfig.load(str(ROOT / name))
    net = cfg.model.backbone.net
    net.img_size, net.embed_dim, net.depth, net.num_heads, net.window_size = 96, 16, 2, 2, 4
    net.window_block_indexes = [0]
    cfg.model.backbone.square_pad = 96
    cfg.model.backbone.out_channels = 8
    cfg.model.proposal_generator.head.in_channels = 8
    cfg.model.proposal_generator.post_nms_topk = (40, 20)
    heads = cfg.model.roi_heads
    heads.num_classes = 3
    for head in heads.get("box_heads") or [heads.box_head]:
        head.input_shape.channels, head.conv_dims, head.fc_dims = 8, [8], [8]
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.input_shape.channels = 8
        predictor.test_score_thresh = 0.0
    heads.mask_head.input_shape.channels, heads.mask_head.conv_dims = 8, [8, 8]
    return cfg


def batch(boxes):
    """Two images of different size, with these boxes in each."""
    out = []
    for (height, width), of_image in zip(SIZES_HW, boxes, strict=True):
        xyxy = torch.tensor(of_image, dtype=torch.float32).reshape(-1, 4)
        masks = torch.zeros(len(xyxy), height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, xyxy.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        instances = Instances(
            (height, width),
            gt_boxes=Boxes(xyxy),
            gt_classes=torch.arange(len(xyxy)) % 3,
            gt_masks=BitMasks(masks),
        )
        out.append({"image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8), "instances": instances})
    return out


# -------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("name", [n for n in FILES if not n.startswith("common/")])
def test_configs_build(name):
    lines = (ROOT / name).read_text().splitlines()
    assert lines[0].startswith("# ") and f"--config-file projects/ViTDet/configs/{name} " in lines[1]
    cfg = LazyConfig.load(str(ROOT / name))
    with torch.device("meta"):
        model = instantiate(cfg.model)
    classes = 1203 if name.startswith("LVIS") else 80
    assert model.roi_heads.num_classes == classes
    assert model.backbone.padding_constraints["square_size"] == 1024
    if "cascade" in name:
        assert [type(p).__name__ for p in model.roi_heads.box_predictor] == ["FastRCNNOutputLayers"] * 3
        predictor = model.roi_heads.box_predictor[-1]
    else:
        predictor = model.roi_heads.box_predictor
    assert predictor.cls_score.out_features == classes + 1
    assert predictor.use_fed_loss == name.startswith("LVIS")
    if "vitdet" in name:
        net = model.backbone.net
        whole = [i for i, b in enumerate(net.blocks) if b.window_size == 0]
        step = len(net.blocks) // 4
        assert whole == [step - 1, 2 * step - 1, 3 * step - 1, 4 * step - 1]  # four, evenly spread, the last included


def test_federated_loss_knows_its_classes():
    cfg = LazyConfig.load(str(ROOT / "LVIS/cascade_mask_rcnn_vitdet_b_100ep.py"))
    counts = [c["image_count"] for c in MetadataCatalog.get("lvis_v1_train").class_image_count]
    for predictor in cfg.model.roi_heads.box_predictors:
        np.testing.assert_allclose(predictor.get_fed_loss_cls_weights().numpy(), np.sqrt(counts), rtol=1e-6)


def test_configs_do_not_share_what_they_change():
    cascade, plain = (
        LazyConfig.load(str(ROOT / f"COCO/{name}mask_rcnn_vitdet_l_100ep.py")) for name in ("cascade_", "")
    )
    assert "box_heads" in cascade.model.roi_heads and "box_heads" not in plain.model.roi_heads
    assert cascade.model.backbone.net.depth == plain.model.backbone.net.depth == 24
    assert LazyConfig.load(str(ROOT / "COCO/mask_rcnn_vitdet_b_100ep.py")).model.backbone.net.depth == 12


# ---------------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("boxes", [[[], []], [[[4, 4, 40, 36], [30, 10, 70, 60]], [[10, 8, 42, 40]]]])
@pytest.mark.parametrize("name", ["COCO/mask_rcnn_vitdet_b_100ep.py", "COCO/cascade_mask_rcnn_vitdet_b_100ep.py"])
def test_two_steps_in_mixed_precision(name, boxes):
    cfg = tiny_config(name)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    net = model.backbone.net
    # twelve blocks in the config's function: the two here are the lowest of them
    assert rates[id(net.pos_embed)] == pytest.approx(1e-4 * 0.7**13)
    assert rates[id(net.blocks[1].mlp.fc1.weight)] == pytest.approx(1e-4 * 0.7**11)
    assert rates[id(model.backbone.simfp_4[0].weight)] == pytest.approx(1e-4)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses = model(batch(boxes))
        assert all(bool(v.isfinite()) for v in losses.values())
        sum(losses.values()).backward()
        missing = [n for n, p in model.named_parameters() if p.grad is None]
        assert not missing
        optimizer.step()


def test_inference():
    model = instantiate(tiny_config().model).eval()
    with torch.no_grad():
        results = model([{"image": item["image"]} for item in batch([[], []])])
        assert [r["instances"].image_size for r in results] == SIZES_HW
        assert all(len(r["instances"]) > 0 for r in results)
        assert [tuple(r["instances"].pred_masks.shape[1:]) for r in results] == SIZES_HW

        model.roi_heads.box_predictor.test_score_thresh = 1.1
        for result, size_hw in zip(model(batch([[], []])), SIZES_HW, strict=True):
            found = result["instances"]
            assert len(found) == 0 and found.pred_masks.shape == (0, *size_hw)
            assert found.has("pred_boxes") and found.has("scores") and found.has("pred_classes")


def test_images_larger_than_the_square_are_explained():
    model = instantiate(tiny_config().model).eval()
    with pytest.raises(ValueError, match="square of 96 pixels"):
        model([{"image": torch.zeros(3, 64, 128)}])


def test_copies_and_pickles():
    model = instantiate(tiny_config().model).eval()
    images = [{"image": item["image"]} for item in batch([[], []])]
    with torch.no_grad():
        expected = model(images)[0]["instances"]
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(images)[0]["instances"].scores, expected.scores)


def test_pretrained_weights_of_mae(tmp_path):
    """They have a class token and a last norm, and neither pyramid nor heads; names are matched by their ends."""
    model = instantiate(tiny_config().model)
    before = copy.deepcopy(model.state_dict())
    prefix = "backbone.net."
    weights = {
        k.removeprefix(prefix): torch.randn_like(v)
        for k, v in before.items()
        if k.startswith(prefix) and "rel_pos" not in k
    }
    others = {"cls_token": torch.randn(1, 1, 16), "norm.weight": torch.randn(16), "norm.bias": torch.randn(16)}
    torch.save({"model": {**weights, **others}}, tmp_path / "mae.pth")
    DetectionCheckpointer(model).load(f"{tmp_path / 'mae.pth'}?matching_heuristics=True")
    after = model.state_dict()
    for key, value in weights.items():
        assert torch.equal(after[prefix + key], value), key
    assert torch.equal(after[f"{prefix}blocks.0.attn.rel_pos_h"], before[f"{prefix}blocks.0.attn.rel_pos_h"])
