"""Input and output of every kind of model: key by key, shape by shape, as the documentation describes them."""

import pytest
import torch

from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

SIZES = [(96, 128), (64, 96)]  # (height, width) of the two images of a batch
MODELS = {
    "faster": (
        "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
        {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"},
    ),
    "mask": (
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"},
    ),
    "keypoint": (
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
        {"loss_cls", "loss_box_reg", "loss_keypoint", "loss_rpn_cls", "loss_rpn_loc"},
    ),
    "fast": ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", {"loss_cls", "loss_box_reg"}),
    "rpn": ("COCO-Detection/rpn_R_50_FPN_1x.yaml", {"loss_rpn_cls", "loss_rpn_loc"}),
    "retinanet": ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", {"loss_cls", "loss_box_reg"}),
}


@pytest.fixture
def build(tiny_config):
    """A function that builds a model by its kind."""

    def build_kind(kind: str):
        cfg = tiny_config(MODELS[kind][0])
        cfg.merge_from_list(["MODEL.RETINANET.NUM_CLASSES", 4, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0])
        cfg.merge_from_list(["MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.TOPK_CANDIDATES_TEST", 50])
        if kind != "keypoint":  # whose only class is the person
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
        model = build_model(cfg)
        if kind == "keypoint":  # logits of random weights are so large that their softmax underflows
            model.roi_heads.keypoint_head.score_lowres.weight.data.mul_(0.01)
        return model

    return build_kind


def batch(kind: str, train: bool, *, objects=(2, 1), masks="polygon"):
    """Return the documented input, with every key the model takes."""
    inputs = []
    for (h, w), n in zip(SIZES, objects, strict=True):
        d = {"image": torch.rand(3, h, w) * 255, "height": h * 2, "width": w * 3}
        if train:
            boxes = torch.tensor([[10.0, 12.0, 50.0, 44.0], [20.0, 5.0, 21.0, 6.0]])[:n]
            d["instances"] = Instances((h, w), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(n, dtype=torch.int64))
            if kind == "mask":
                corners = [[torch.tensor([a, b, c, b, c, e, a, e]).double().numpy()] for a, b, c, e in boxes.tolist()]
                polygons = PolygonMasks(corners)
                d["instances"].gt_masks = (
                    polygons if masks == "polygon" else BitMasks.from_polygon_masks(polygons, h, w)
                )
            if kind == "keypoint":
                d["instances"].gt_keypoints = Keypoints(torch.tensor([[30.0, 30.0, 2.0]]).expand(n, 17, 3).clone())
        if kind == "fast":
            proposals = torch.tensor([[8.0, 10.0, 52.0, 46.0], [0.0, 0.0, 30.0, 30.0]])
            d["proposals"] = Instances(
                (h, w), proposal_boxes=Boxes(proposals), objectness_logits=torch.tensor([3.0, 1.0])
            )
        inputs.append(d)
    return inputs


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("objects", [(0, 0), (0, 1), (2, 1)], ids=str)
def test_losses(build, kind, objects):
    model = build(kind).train()
    with EventStorage():
        losses = model(batch(kind, train=True, objects=objects))
    assert set(losses) == MODELS[kind][1]
    for name, value in losses.items():
        assert value.shape == (), name
        assert torch.isfinite(value), name
    sum(losses.values()).backward()


def test_losses_with_bitmasks_are_nearly_those_with_polygons(build):
    model = build("mask").train()
    values = []
    for masks in ("polygon", "bitmask"):
        torch.manual_seed(0)
        inputs = batch("mask", train=True, masks=masks)
        torch.manual_seed(0)
        with EventStorage():
            values.append(model(inputs)["loss_mask"].item())
    assert values[0] == pytest.approx(values[1], rel=0.05)


@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint", "fast", "retinanet"])
def test_instances(build, kind):
    with torch.no_grad():
        outputs = build(kind).eval()(batch(kind, train=False))
    assert len(outputs) == 2
    fields = {"pred_boxes", "scores", "pred_classes"}
    fields |= {"mask": {"pred_masks"}, "keypoint": {"pred_keypoints", "pred_keypoint_heatmaps"}}.get(kind, set())
    for output, (h, w) in zip(outputs, SIZES, strict=True):
        assert list(output) == ["instances"]
        instances = output["instances"]
        n, size = len(instances), (h * 2, w * 3)  # the resolution that was asked for
        assert n > 0
        assert instances.image_size == size
        assert set(instances.get_fields()) == fields
        assert isinstance(instances.pred_boxes, Boxes)
        assert instances.pred_boxes.tensor.shape == (n, 4)
        assert (instances.pred_boxes.tensor >= 0).all()
        assert (instances.pred_boxes.tensor <= torch.tensor([w * 3, h * 2, w * 3, h * 2])).all()
        assert instances.scores.shape == (n,)
        assert ((instances.scores >= 0) & (instances.scores <= 1)).all()
        assert instances.pred_classes.shape == (n,)
        assert instances.pred_classes.dtype == torch.int64
        assert ((instances.pred_classes >= 0) & (instances.pred_classes < 4)).all()
        if kind == "mask":
            assert instances.pred_masks.shape == (n, *size)
            assert instances.pred_masks.dtype == torch.bool
        if kind == "keypoint":
            assert instances.pred_keypoints.shape == (n, 17, 3)
            assert (instances.pred_keypoints[..., 2] > 0).all()  # scores


def test_proposals(build):
    with torch.no_grad():
        outputs = build("rpn").eval()(batch("rpn", train=False))
    for output, (h, w) in zip(outputs, SIZES, strict=True):
        assert list(output) == ["proposals"]
        proposals = output["proposals"]
        assert proposals.image_size == (h * 2, w * 3)
        assert set(proposals.get_fields()) == {"proposal_boxes", "objectness_logits"}
        assert isinstance(proposals.proposal_boxes, Boxes)
        assert proposals.objectness_logits.shape == (len(proposals),)


@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint", "fast", "retinanet"])
def test_only_the_image_is_required(build, kind):
    inputs = [{k: v for k, v in d.items() if k not in ("height", "width")} for d in batch(kind, train=False)]
    with torch.no_grad():
        outputs = build(kind).eval()(inputs)
    assert [o["instances"].image_size for o in outputs] == SIZES


@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint", "retinanet"])
def test_uint8_images(build, kind):
    inputs = [{"image": d["image"].byte()} for d in batch(kind, train=False)]
    with torch.no_grad():
        assert len(build(kind).eval()(inputs)) == 2


@pytest.mark.parametrize("kind", ["faster", "mask", "keypoint", "retinanet"])
def test_nothing_found(build, kind):
    model = build(kind).eval()
    if kind == "retinanet":
        model.test_score_thresh = 1.1
    else:
        model.roi_heads.box_predictor.test_score_thresh = 1.1
    with torch.no_grad():
        outputs = model(batch(kind, train=False))
    for output, (h, w) in zip(outputs, SIZES, strict=True):
        assert len(output["instances"]) == 0
        assert output["instances"].pred_boxes.tensor.shape == (0, 4)
        if kind == "mask":
            assert output["instances"].pred_masks.shape == (0, h * 2, w * 3)
        if kind == "keypoint":
            assert output["instances"].pred_keypoints.shape == (0, 17, 3)


def test_no_images(build):
    with pytest.raises(ValueError, match="at least one image"):
        build("mask").eval()([])
