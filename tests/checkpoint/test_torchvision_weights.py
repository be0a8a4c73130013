"""Detectors with weights of torchvision compute what torchvision's own compute."""

import re
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torchvision.models import detection
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops import boxes as box_ops

from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.torchvision_weights import (
    _COCO_IDS,
    CONFIGS,
    convert_torchvision_detector,
    has_published_eps,
    torchvision_differences,
    torchvision_url,
)
from detectron2.config import CfgNode, instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.file_io import HTTPURLHandler

SIZE_HW = (96, 136)  # at stride 64 of the padded image of 160 pixels, three cells of 53
MOST = 12  # detections of an image
IMAGE = torch.randint(0, 256, (3, *SIZE_HW), generator=torch.Generator().manual_seed(2)).float()


def build(name, num_classes=None) -> Any:
    """Build our model of a torchvision detector, without its weights, as small as it goes."""
    cfg = model_zoo.get_config(CONFIGS[name])
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = "cpu"
        if num_classes:
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
        cfg.TEST.DETECTIONS_PER_IMAGE = MOST
        return build_model(cfg).eval()
    cfg.model.num_classes = num_classes or 80
    return instantiate(cfg.model).eval()


# Standard deviations of what the last layers give, so that boxes lie in the image and some scores are high.
SPREAD = {"cls_logits": 2.0, "bbox_pred": 0.5, "bbox_reg": 0.5, "cls_score": 3.0, "mask_fcn_logits": 2.0}


def torchvision_model(name, num_classes=None) -> Any:
    """Build torchvision's model with random weights that let it find something."""
    torch.manual_seed(0)
    kwargs = {"num_classes": num_classes + 1} if num_classes else {}
    model = getattr(detection, name)(
        weights=None, weights_backbone=None, min_size=min(SIZE_HW), max_size=max(SIZE_HW), **kwargs
    ).eval()
    if hasattr(model, "roi_heads"):
        model.roi_heads.detections_per_img = MOST
    for key, value in model.state_dict().items():
        if re.search(r"(bn\d|downsample\.1)\.(weight|running_var)$", key):
            value.copy_(torch.rand(value.shape) * 0.2 + 0.1)
        elif re.search(r"(bn\d|downsample\.1)\.(bias|running_mean)$", key):
            value.copy_(torch.randn(value.shape) * 0.1)
    hooks = {}

    def rescale(module, spread):
        def hook(_, inputs, output):
            hooks[module].remove()  # of the finest level alone
            factor = spread / output.std()
            with torch.no_grad():
                module.weight.mul_(factor)
            return output * factor

        hooks[module] = module.register_forward_hook(hook)

    for key, module in model.named_modules():
        if (spread := SPREAD.get(key.rpartition(".")[2])) is not None:
            torch.nn.init.normal_(module.weight)
            torch.nn.init.zeros_(module.bias)
            rescale(module, spread)
    run(model)
    return model


def run(model):
    with torch.no_grad():
        return model([IMAGE / 255])[0]


def run_both(theirs, ours):
    expected = run(theirs)
    with torch.no_grad():
        return expected, ours([{"image": IMAGE}])[0]["instances"]


def assert_same_boxes(expected, found, to_label):
    assert len(found) == len(expected["boxes"]) >= MOST
    torch.testing.assert_close(found.scores, expected["scores"], atol=1e-4, rtol=0)
    # Of two with nearly the same score either may come first.
    labels = torch.tensor([to_label(c) for c in found.pred_classes.tolist()])
    same = labels[:, None] == expected["labels"]
    same &= (found.scores[:, None] - expected["scores"]).abs() < 1e-4
    same &= torch.cdist(found.pred_boxes.tensor, expected["boxes"], p=float("inf")) < 1e-3
    assert same.any(0).all()
    assert same.any(1).all()


def load(ours, weights, tmp_path):
    torch.save(OrderedDict(weights), tmp_path / "torchvision.pth")
    DetectionCheckpointer(ours).load_for_inference(str(tmp_path / "torchvision.pth"))
    return ours


def as_in_old_files(weights):
    """The names that torchvision's files had before its version 0.13."""
    old = OrderedDict()
    for key, value in weights.items():
        name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
        name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        name = re.sub(r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}.", name)
        name = re.sub(r"_head\.conv\.(\d)\.0\.", lambda found: f"_head.conv.{2 * int(found[1])}.", name)
        old[name] = value
    return old


def test_nothing_in_the_file():
    assert convert_torchvision_detector({}) == {}


@pytest.mark.parametrize("name", list(CONFIGS))
def test_files_of_older_versions(name):
    with torch.device("meta"):
        weights = getattr(detection, name)(weights=None, weights_backbone=None).state_dict()
    old = as_in_old_files(weights)
    assert set(old) != set(weights)
    converted = convert_torchvision_detector(old)
    assert {k: v.shape for k, v in converted.items()} == {
        k: v.shape for k, v in convert_torchvision_detector(weights).items()
    }


def test_faster_rcnn(tmp_path):
    theirs = torchvision_model("fasterrcnn_resnet50_fpn", 3)
    ours = load(build("fasterrcnn_resnet50_fpn", 3), theirs.state_dict(), tmp_path)
    assert torchvision_differences(ours) == []
    assert_same_boxes(*run_both(theirs, ours), lambda c: c + 1)


def test_faster_rcnn_of_coco(tmp_path):
    theirs = torchvision_model("fasterrcnn_resnet50_fpn")
    predictor = theirs.roi_heads.box_predictor.cls_score
    with torch.no_grad():
        predictor.bias[[i for i in range(1, 91) if i not in _COCO_IDS]] = -1e4  # as training leaves them, but more so
    ours = load(build("fasterrcnn_resnet50_fpn"), theirs.state_dict(), tmp_path)
    coco = model_zoo.get_config(CONFIGS["fasterrcnn_resnet50_fpn"]).DATASETS.TEST[0]
    to_id = {v: k for k, v in MetadataCatalog.get(coco).thing_dataset_id_to_contiguous_id.items()}
    theirs.roi_heads.detections_per_img = ours.roi_heads.box_predictor.test_topk_per_image = 200
    expected, found = run_both(theirs, ours)
    assert set(expected["labels"].tolist()) > {76}
    assert_same_boxes(expected, found, to_id.__getitem__)


def test_mask_rcnn(tmp_path):
    theirs = torchvision_model("maskrcnn_resnet50_fpn", 3)
    ours = load(build("maskrcnn_resnet50_fpn", 3), theirs.state_dict(), tmp_path)
    theirs.transform.postprocess = lambda result, *sizes: result  # masks of 28 x 28
    expected = run(theirs)
    with torch.no_grad():
        found = ours.inference([{"image": IMAGE}], do_postprocess=False)[0]
    assert_same_boxes(expected, found, lambda c: c + 1)
    assert found.pred_masks.shape[-1] == 28 and found.pred_masks.std() > 1e-3
    torch.testing.assert_close(found.pred_masks, expected["masks"], atol=1e-4, rtol=0)


def test_keypoint_rcnn(tmp_path):
    theirs = torchvision_model("keypointrcnn_resnet50_fpn", 1)
    ours = load(build("keypointrcnn_resnet50_fpn"), theirs.state_dict(), tmp_path)
    expected, found = run_both(theirs, ours)
    assert_same_boxes(expected, found, lambda c: c + 1)
    same = (found.pred_keypoints[..., :2] - expected["keypoints"][..., :2]).abs().amax(-1) < 1e-2
    assert same.float().mean() > 0.99  # of two peaks of one height either may be taken


def test_retinanet(tmp_path, monkeypatch):
    theirs = torchvision_model("retinanet_resnet50_fpn", 3)
    with torch.no_grad():
        # Of the channel for the background, which training keeps at zero, nothing remains here.
        theirs.head.classification_head.cls_logits.bias.view(9, 4)[:, 0] = -1e4
    ours = load(build("retinanet_resnet50_fpn", 3), theirs.state_dict(), tmp_path)
    assert torchvision_differences(ours) == []
    # There boxes are cut to the image before suppression, here after it.
    monkeypatch.setattr(box_ops, "clip_boxes_to_image", lambda boxes, size: boxes)
    expected = run(theirs)
    with torch.no_grad():
        predictions = ours.preprocess_image([{"image": IMAGE}])
        features = ours.backbone(predictions.tensor)
        outputs = ours.head([features[name] for name in ours.head_in_features])
        found = ours.forward_inference(predictions, [features[name] for name in ours.head_in_features], outputs)[0]
    assert_same_boxes(expected, found, lambda c: c + 1)


def test_names_of_torchvision():
    assert torchvision_url("resnet50/IMAGENET1K_V1").endswith("resnet50-0676ba61.pth")
    for name in CONFIGS:
        assert name.partition("_")[0] in torchvision_url(name)
    with pytest.raises(ValueError, match=r"no model 'fasterrcnn_resnet50'\. The nearest are fasterrcnn_resnet50_fpn"):
        torchvision_url("fasterrcnn_resnet50")
    with pytest.raises(ValueError, match="choose one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        torchvision_url("resnet50/IMAGENET1K_V3")


def test_weights_by_name(tmp_path, monkeypatch):
    """The file of a name is loaded, and its norms have the epsilon of the published detectors."""
    theirs = torchvision_model("fasterrcnn_resnet50_fpn", 3)
    torch.save(theirs.state_dict(), tmp_path / "fetched.pth")
    asked = []
    monkeypatch.setattr(
        HTTPURLHandler, "_get_local_path", lambda self, path, **_: asked.append(path) or str(tmp_path / "fetched.pth")
    )
    ours = build("fasterrcnn_resnet50_fpn", 3)
    DetectionCheckpointer(ours).load_for_inference("torchvision://fasterrcnn_resnet50_fpn")
    assert asked == ["https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"]
    overwrite_eps(theirs, 0.0)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
    assert_same_boxes(*run_both(theirs, ours), lambda c: c + 1)


def test_which_weights_have_an_epsilon_of_zero():
    assert has_published_eps("torchvision://maskrcnn_resnet50_fpn")
    assert has_published_eps("/a/retinanet_resnet50_fpn_coco-eeacb38b.pth")
    assert not has_published_eps("torchvision://keypointrcnn_resnet50_fpn/COCO_LEGACY")
    assert not has_published_eps("/a/keypointrcnn_resnet50_fpn_coco-9f466800.pth")
    assert not has_published_eps("/a/fasterrcnn_resnet50_fpn_of_mine.pth")
    assert not has_published_eps("torchvision://fasterrcnn_resnet50_fpn_v2")


def test_a_model_that_computes_something_else_takes_the_backbone_alone(tmp_path, caplog):
    weights = torchvision_model("fasterrcnn_resnet50_fpn", 3).state_dict()
    torch.save(weights, tmp_path / "torchvision.pth")
    cfg = model_zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    ours: Any = build_model(cfg)
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT must be .*AnchorGenerator.*STRIDE_IN_1X1.*POOLER_TYPE"):
        DetectionCheckpointer(ours).load_for_inference(str(tmp_path / "torchvision.pth"))
    DetectionCheckpointer(ours).load(str(tmp_path / "torchvision.pth"))
    assert "Only the backbone is loaded" in caplog.text
    assert torch.equal(ours.backbone.bottom_up.stem.conv1.weight, weights["backbone.body.conv1.weight"])


def test_detectors_without_a_counterpart_are_refused():
    weights = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=2).state_dict()
    with pytest.raises(ValueError, match=r"'backbone\.fpn\.inner_blocks\.0\.1\.weight' .* has no counterpart here"):
        convert_torchvision_detector(weights, 1)
