import copy
import io
import pickle

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from torch import nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, GeneralizedRCNN, ProposalNetwork, build_model, detector_postprocess
from detectron2.modeling.meta_arch import rcnn
from detectron2.modeling.postprocessing import paste_predicted_masks
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage

KINDS = {
    "mask": ("MODEL.KEYPOINT_ON", True),
    "cascade": ("MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True),
    "c4": (
        "MODEL.ROI_HEADS.NAME", "Res5ROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p3"], "MODEL.RESNETS.NORM", "BN",
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 2, "MODEL.RESNETS.WIDTH_PER_GROUP", 1, "MODEL.ROI_MASK_HEAD.NUM_CONV", 0,
    ),
}  # fmt: skip
NO_OBJECT = [[], []]


@pytest.fixture(params=KINDS)
def any_model(request, tiny_rcnn_cfg):
    return build_model(tiny_rcnn_cfg(*KINDS[request.param]))


@pytest.fixture
def model(tiny_rcnn_cfg):
    return build_model(tiny_rcnn_cfg("MODEL.KEYPOINT_ON", True))


@pytest.mark.parametrize(
    "boxes",
    [NO_OBJECT, [[[4, 4, 40, 36]], []], [[[4, 4, 5, 5], [30, 10, 90, 60]], [[10, 8, 42, 40]]]],
    ids=["no object", "one image without", "an object of one pixel"],
)
def test_training(any_model, rcnn_batch, boxes):
    with EventStorage():
        losses = any_model(rcnn_batch(train=True, boxes=boxes))
    assert {"loss_rpn_cls", "loss_rpn_loc", "loss_mask"} < set(losses)
    assert all(v.dim() == 0 and torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    without = [k for k, p in any_model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_training_needs_no_storage(model, rcnn_batch):
    assert set(model(rcnn_batch(train=True))) == {
        "loss_cls", "loss_box_reg", "loss_mask", "loss_keypoint", "loss_rpn_cls", "loss_rpn_loc",
    }  # fmt: skip


def test_training_lowers_the_loss(model, rcnn_batch):
    batch = rcnn_batch(train=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    history = []
    for _ in range(25):
        torch.manual_seed(0)  # the same samples in every step
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]


def test_half_precision_trains_two_steps(model, rcnn_batch):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(rcnn_batch(train=True))
        assert all(torch.isfinite(v) for v in losses.values())
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(rcnn_batch())
    assert outputs[0]["instances"].scores.dtype == torch.float32


def test_output_format(model, rcnn_batch):
    model.eval()
    batch = rcnn_batch()
    batch[1]["height"], batch[1]["width"] = 96, 120  # 48 x 80 doubled, and half as wide again
    with torch.no_grad():
        outputs = model(batch)
    assert [set(x) for x in outputs] == [{"instances"}] * 2
    for out, size_hw in zip(outputs, [(64, 96), (96, 120)], strict=True):
        instances = out["instances"]
        count = len(instances)
        assert instances.image_size == size_hw and 0 < count <= 10
        assert isinstance(instances.pred_boxes, Boxes) and instances.pred_boxes.inside_box(size_hw).all()
        assert instances.scores.shape == (count,) and instances.scores.dtype == torch.float32
        assert instances.pred_classes.shape == (count,) and instances.pred_classes.dtype == torch.int64
        assert instances.pred_classes.min() >= 0 and instances.pred_classes.max() < 3
        assert instances.pred_masks.shape == (count, *size_hw) and instances.pred_masks.dtype == torch.bool
        assert instances.pred_keypoints.shape == (count, 4, 3) and instances.pred_keypoints[..., 2].min() > 0


def test_nothing_found(any_model, rcnn_batch):
    any_model.eval()
    predictors = any_model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
        predictor.test_score_thresh = 1.0
    with torch.no_grad():
        outputs = any_model(rcnn_batch())
    assert [len(x["instances"]) for x in outputs] == [0, 0]
    assert outputs[1]["instances"].pred_masks.shape == (0, 48, 80)


def test_batched_inference_equals_single(any_model, rcnn_batch):
    any_model.eval()
    with torch.no_grad():
        together = any_model(rcnn_batch())
        alone = [any_model([x])[0] for x in rcnn_batch()]
    # The smaller image is padded in the batch, which changes its features near the border only.
    for a, b in zip(together[:1], alone[:1], strict=True):
        torch.testing.assert_close(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)
        torch.testing.assert_close(a["instances"].scores, b["instances"].scores)


def test_copies_and_state_round_trip(any_model, tiny_rcnn_cfg, rcnn_batch):
    any_model.eval()
    assert not any(k.startswith("pixel_") for k in any_model.state_dict())
    stream = io.BytesIO()
    torch.save(any_model.state_dict(), stream)
    restored = copy.deepcopy(any_model)
    for parameter in restored.parameters():
        nn.init.zeros_(parameter)
    restored.load_state_dict(torch.load(io.BytesIO(stream.getvalue()), weights_only=True))
    with torch.no_grad():
        expected = any_model(rcnn_batch())[0]["instances"]
        for twin in (copy.deepcopy(any_model), pickle.loads(pickle.dumps(any_model)), restored):
            got = twin(rcnn_batch())[0]["instances"]
            assert torch.equal(got.pred_boxes.tensor, expected.pred_boxes.tensor)
            assert torch.equal(got.pred_masks, expected.pred_masks)


def test_raw_results_and_known_boxes(model, rcnn_batch):
    model.eval()
    batch = rcnn_batch()
    batch[0]["height"], batch[0]["width"] = 128, 192
    with torch.no_grad():
        raw = model.inference(batch, do_postprocess=False)
        known = [Instances(x.image_size, pred_boxes=x.pred_boxes, pred_classes=x.pred_classes) for x in raw]
        again = model.inference(batch, known, do_postprocess=False)
        assert [x.image_size for x in raw] == [(64, 96), (48, 80)]
        torch.testing.assert_close(raw[0].pred_masks, again[0].pred_masks)
        torch.testing.assert_close(raw[0].pred_keypoints, again[0].pred_keypoints)
        full = model(batch)[0]["instances"]
        by_hand = GeneralizedRCNN._postprocess(raw, batch, [(64, 96), (48, 80)])[0]["instances"]
    assert full.image_size == by_hand.image_size == (128, 192)
    torch.testing.assert_close(full.pred_boxes.tensor, by_hand.pred_boxes.tensor)


def test_documented_partial_execution(model, rcnn_batch):
    model.eval()
    with torch.no_grad():
        images = ImageList.from_tensors([x["image"].float() for x in rcnn_batch()], 8)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        instances, _ = model.roi_heads(images, features, proposals)
        mask_features = [features[f] for f in model.roi_heads.in_features]
        mask_features = model.roi_heads.mask_pooler(mask_features, [x.pred_boxes for x in instances])
    assert mask_features.shape == (sum(len(x) for x in instances), 8, 4, 4)


def test_preprocessing_by_hand(model, rcnn_batch):
    batch = rcnn_batch()
    model.pixel_std.copy_(torch.tensor([2.0, 4.0, 5.0]).view(3, 1, 1))
    before = batch[1]["image"].clone()
    images = model.preprocess_image(batch)
    assert images.tensor.shape == (2, 3, 64, 96) and [tuple(s) for s in images.image_sizes] == [(64, 96), (48, 80)]
    expected = (before.float() - torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)) / model.pixel_std
    torch.testing.assert_close(images.tensor[1, :, :48, :80], expected)
    assert not images.tensor[1, :, 48:].any() and not images.tensor[1, :, :, 80:].any()
    assert torch.equal(batch[1]["image"], before)
    as_float = [{"image": before.float()}]
    model.preprocess_image(as_float)
    assert torch.equal(as_float[0]["image"], before.float())  # what was given is not written to


def test_pictures_of_training(monkeypatch, tiny_rcnn_cfg, rcnn_batch):
    seen = []

    def draw(image, image_format, truth, best):
        seen.append((image_format, len(truth), len(best)))
        return torch.zeros(3, 4, 4).numpy()

    monkeypatch.setattr(rcnn, "side_by_side", draw)
    model = build_model(tiny_rcnn_cfg("VIS_PERIOD", 2))
    with EventStorage() as storage:
        for _ in range(3):
            model(rcnn_batch(train=True))
            storage.step()
        assert seen == [("BGR", 2, 20)] * 2
        assert "Left: GT bounding boxes;  Right: Predicted proposals" in {name for name, *_ in storage.vis_data}
    model.visualize_training([], [])
    model(rcnn_batch(train=True))  # nobody listens
    assert len(seen) == 2


# --- precomputed proposals -------------------------------------------------------------------------------------------

PRECOMPUTED = (
    "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "MODEL.LOAD_PROPOSALS", True, "MODEL.MASK_ON", False,
)  # fmt: skip


def test_precomputed_proposals(tiny_rcnn_cfg, rcnn_batch, make_proposals):
    model = build_model(tiny_rcnn_cfg(*PRECOMPUTED))
    assert model.proposal_generator is None
    batch = rcnn_batch(train=True)
    for item in batch:
        item["proposals"] = make_proposals(tuple(item["image"].shape[1:]), [[4, 4, 40, 36], [0, 0, 20, 20]])
    assert set(model(batch)) == {"loss_cls", "loss_box_reg"}
    model.eval()
    with torch.no_grad():
        assert len(model(batch)[0]["instances"]) > 0
    del batch[1]["proposals"]
    with pytest.raises(ValueError, match=r"input 1 .*'proposals'"):
        model(batch)


# --- ProposalNetwork --------------------------------------------------------------------------------------------------


@pytest.fixture
def proposal_network(tiny_rcnn_cfg):
    return build_model(tiny_rcnn_cfg("MODEL.META_ARCHITECTURE", "ProposalNetwork"))


@pytest.mark.parametrize("boxes", [NO_OBJECT, None])
def test_proposal_network_trains(proposal_network, rcnn_batch, boxes):
    assert isinstance(proposal_network, ProposalNetwork)
    losses = proposal_network(rcnn_batch(train=True, boxes=boxes))
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc"}
    sum(losses.values()).backward()


def test_proposal_network_proposes(proposal_network, rcnn_batch):
    proposal_network.eval()
    batch = rcnn_batch()
    batch[0]["height"], batch[0]["width"] = 32, 48
    with torch.no_grad():
        outputs = proposal_network(batch)
    assert [set(x) for x in outputs] == [{"proposals"}] * 2
    proposals = outputs[0]["proposals"]
    assert proposals.image_size == (32, 48) and 0 < len(proposals) <= 20
    assert proposals.proposal_boxes.inside_box((32, 48)).all()
    assert set(proposals.get_fields()) == {"proposal_boxes", "objectness_logits"}


# --- interface --------------------------------------------------------------------------------------------------------


class Constant(Backbone):
    """Explicit construction needs no config."""

    padding_constraints = {"size_divisibility": 16}
    size_divisibility = 16

    def forward(self, x):
        return {"x": x}

    def output_shape(self):
        return {"x": ShapeSpec(channels=3, stride=1)}


def detector(**changes):
    arguments = {
        "backbone": Constant(), "proposal_generator": None, "roi_heads": nn.Identity(),
        "pixel_mean": (1, 2, 3), "pixel_std": [1, 1, 1],
    }  # fmt: skip
    return GeneralizedRCNN(**{**arguments, **changes})


def test_attributes_that_subclasses_read():
    model = detector(input_format="RGB", vis_period=5)
    assert (model.input_format, model.vis_period, model.device) == ("RGB", 5, torch.device("cpu"))
    assert model.pixel_mean.flatten().tolist() == [1, 2, 3] and model.pixel_std.shape == (3, 1, 1)
    assert model.preprocess_image([{"image": torch.zeros(3, 17, 5)}]).tensor.shape == (1, 3, 32, 16)


def test_mistakes_are_named(model, rcnn_batch):
    with pytest.raises(ValueError, match="PIXEL_STD"):
        detector(pixel_std=[1.0])
    with pytest.raises(ValueError, match="input_format"):
        detector(vis_period=5)
    with pytest.raises(ValueError, match=r"image 1 .*\(1, 48, 80\), expected \(3, height, width\)"):
        batch = rcnn_batch(train=True)
        batch[1]["image"] = batch[1]["image"][:1]
        model(batch)
    with pytest.raises(ValueError, match="instances"):
        model(rcnn_batch(train=False))
    with pytest.raises(ValueError, match=r"input 1 .*'instances'"):
        batch = rcnn_batch(train=True)
        del batch[1]["instances"]
        model(batch)
    with pytest.raises(ValueError, match="eval"):
        model.inference(rcnn_batch())


def test_postprocessing_is_looked_up_in_the_module(monkeypatch, model, rcnn_batch):
    sizes = []

    def spy(results, height, width):
        sizes.append((height, width))
        return detector_postprocess(results, height, width)

    monkeypatch.setattr(rcnn, "detector_postprocess", spy)
    with torch.no_grad():
        model.eval()(rcnn_batch())
    assert sizes == [(64, 96), (48, 80)]


# --- formats of masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rle", "roi"])
def test_masks_of_each_format(tiny_rcnn_cfg, rcnn_batch, kind):
    full = build_model(tiny_rcnn_cfg()).eval()
    other = build_model(tiny_rcnn_cfg("TEST.MASK_FORMAT", kind)).eval()
    assert (full.mask_format, other.mask_format) == ("full", kind)
    other.load_state_dict(full.state_dict())
    batch = rcnn_batch()
    batch[1].update(height=96, width=120)
    with torch.no_grad():
        expected, found = ([x["instances"] for x in model(batch)] for model in (full, other))
        full.mask_format = kind  # at any time
        again = full(batch)[1]["instances"]
    assert again.has("pred_masks_rle") is (kind == "rle")
    for one, masks in zip(found, (x.pred_masks for x in expected), strict=True):
        assert len(one) == len(masks) > 0
        assert one.has("pred_masks_rle") is (kind == "rle") and one.has("pred_masks") is (kind == "roi")
        for rle, mask in zip(paste_predicted_masks(one, "rle").pred_masks_rle, masks.numpy(), strict=True):
            np.testing.assert_array_equal(mask_util.decode(rle), mask)
        chosen = one[one.scores >= one.scores.median()]
        assert 0 < len(chosen) < len(one)


def test_an_unknown_format_of_masks_is_refused():
    with pytest.raises(ValueError, match="'polygon'"):
        detector(mask_format="polygon")


def test_subclasses_know_the_published_arguments_only(tiny_rcnn_cfg, rcnn_batch):
    class Older(GeneralizedRCNN):
        @configurable
        def __init__(self, *, backbone, proposal_generator, roi_heads, pixel_mean, pixel_std, input_format, vis_period):
            super().__init__(
                backbone=backbone, proposal_generator=proposal_generator, roi_heads=roi_heads, pixel_mean=pixel_mean,
                pixel_std=pixel_std, input_format=input_format, vis_period=vis_period,
            )  # fmt: skip

        @staticmethod
        def _postprocess(instances, batched_inputs, image_sizes):
            return [{"instances": x} for x in instances]

    model = Older(tiny_rcnn_cfg()).eval()
    with torch.no_grad():
        assert all(x["instances"].pred_masks.dim() == 4 for x in model(rcnn_batch()))
    with pytest.raises(TypeError, match="mask_format"):
        Older(tiny_rcnn_cfg("TEST.MASK_FORMAT", "rle"))


_PARTS = ("proposal_generator", "roi_heads")
_NOT_TWO = "must return two things: .* It returned "


@pytest.mark.parametrize(
    ("part", "change", "error", "message"),
    [
        *((part, lambda found: None, TypeError, rf"{_NOT_TWO}NoneType\. Is a return missing") for part in _PARTS),
        *((part, lambda found: found[0], TypeError, rf"{_NOT_TWO}\['Instances'\]") for part in _PARTS),
        # Of proposals there may be more, as with the branches of TridentNet.
        ("roi_heads", lambda found: (None, {}), ValueError, "returned NoneType results for 1 images, expected one"),
        ("roi_heads", lambda found: (found[0] * 2, {}), ValueError, "returned 2 results for 1 images, expected one"),
    ],
)
def test_parts_that_return_something_else_are_named(model, rcnn_batch, part, change, error, message):
    module = getattr(model, part)
    forward, name = module.forward, type(module).__name__
    module.forward = lambda *args: change(forward(*args))
    with pytest.raises(error, match=f"{name} {message}"):
        model.eval()(rcnn_batch()[:1])


@pytest.mark.parametrize("part", _PARTS)
def test_parts_without_losses_in_training_are_named(model, rcnn_batch, part):
    module = getattr(model, part)
    forward, name = module.forward, type(module).__name__
    module.forward = lambda *args: (forward(*args)[0], None)
    with pytest.raises(TypeError, match=rf"{name} must return two things: .* It returned \['list', 'NoneType'\]"):
        model(rcnn_batch(train=True))
