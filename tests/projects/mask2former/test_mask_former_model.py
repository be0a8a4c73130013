"""The whole model gives what the model of transformers gives with the same weights, and takes all kinds of input."""

import pytest
import torch
import torch.nn.functional as F

from detectron2.modeling.optimized import optimized_for_inference
from detectron2.structures import BitMasks, ImageList, Instances, PolygonMasks
from tests.projects.mask2former.models import (
    NUM_CLASSES,
    RESNET,
    converted,
    noise,
    tiny_config,
    tiny_model,
    transformers_model,
)


def objects(height, width, classes):
    """Rectangles, one for each class."""
    masks = torch.zeros(len(classes), height, width, dtype=torch.bool)
    for i in range(len(classes)):
        masks[i, 3 * i : 3 * i + height // 2, 5 * i : 5 * i + width // 2] = True
    return Instances((height, width), gt_classes=torch.tensor(classes, dtype=torch.int64), gt_masks=BitMasks(masks))


def pair(changes=()):
    """Our model and that of transformers, with the same weights."""
    pytest.importorskip("transformers")
    cfg = tiny_config(changes)
    theirs, ours = transformers_model(cfg), tiny_model(changes).eval()
    projects = "transformer_module.input_proj" in " ".join(theirs.state_dict())
    if "MODEL.SEM_SEG_HEAD.CONVS_DIM" in dict(changes) and not projects:
        pytest.skip("this version of transformers does not keep its projections among the weights")
    absent, left = ours.load_state_dict(converted(theirs.state_dict()), strict=False)
    assert left == [] and all("relative_position_index" in name for name in absent)
    return ours, theirs


@pytest.mark.parametrize("changes", [{}, {"MODEL.MASK_FORMER.PRE_NORM": True, "MODEL.SEM_SEG_HEAD.CONVS_DIM": 64}])
def test_logits_of_every_layer_equal_those_of_transformers(changes):
    ours, theirs = pair(changes)
    batch = [{"image": noise(64, 96)}, {"image": noise(64, 96, seed=1)}]
    images = ours.preprocess_image(batch)
    with torch.no_grad():
        got = ours.sem_seg_head(ours.backbone(images.tensor))
        want = theirs(pixel_values=images.tensor, output_auxiliary_logits=True)
    layers = [*got["aux_outputs"], got]
    wanted = [*want.auxiliary_logits, vars(want) | dict(want)]
    assert len(layers) == len(wanted) == 5
    for mine, other in zip(layers, wanted, strict=True):
        assert mine["pred_masks"].std() > 0.1
        torch.testing.assert_close(mine["pred_logits"], other["class_queries_logits"], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine["pred_masks"], other["masks_queries_logits"], atol=1e-4, rtol=1e-4)


def test_losses_equal_those_of_transformers():
    """With the same random numbers the same points are drawn."""
    ours, theirs = pair()
    ours.train()
    batch = [
        {"image": noise(64, 96), "instances": objects(64, 96, [0, 4, 1])},
        {"image": noise(64, 96, seed=1), "instances": objects(64, 96, [2])},
    ]
    torch.manual_seed(3)
    losses = ours(batch)
    images = ours.preprocess_image(batch)
    targets = ours.prepare_targets([x["instances"] for x in batch], images)
    torch.manual_seed(3)
    want = theirs(
        pixel_values=images.tensor,
        mask_labels=[x["masks"].float() for x in targets],
        class_labels=[x["labels"] for x in targets],
    ).loss
    assert len(losses) == 15 and want > 1
    torch.testing.assert_close(sum(losses.values()), want.reshape(()), atol=1e-4, rtol=1e-4)


def test_results_equal_those_of_transformers():
    ours, theirs = pair({"TEST.DETECTIONS_PER_IMAGE": 10})
    ours.instance_on = ours.sem_seg_postprocess_before_inference = True
    images = ours.preprocess_image([{"image": noise(64, 96)}])
    with torch.no_grad():
        got = ours([{"image": noise(64, 96)}])[0]
        outputs = theirs(pixel_values=images.tensor)
    masks = F.interpolate(outputs.masks_queries_logits, size=(64, 96), mode="bilinear", align_corners=False)[0]
    # The processor of transformers: semantic segmentation at any size, instances at 384 x 384 pixels.
    scores = torch.einsum("qk,qhw->khw", outputs.class_queries_logits[0].softmax(-1)[:, :-1], masks.sigmoid())
    torch.testing.assert_close(got["sem_seg"], scores, atol=1e-5, rtol=1e-4)
    found = got["instances"]
    assert 5 <= len(found) <= 10 and found.pred_masks.shape[1:] == (64, 96)
    assert (found.scores.diff() <= 0).all() and found.pred_masks.flatten(1).any(1).all()
    torch.testing.assert_close(found.pred_boxes.tensor, BitMasks(found.pred_masks).get_bounding_boxes().tensor)


def test_results_have_the_size_that_is_asked_for():
    model = tiny_model().eval()
    model.metadata.thing_dataset_id_to_contiguous_id = {7: 0, 9: 2}
    model.instance_on = model.panoptic_on = model.sem_seg_postprocess_before_inference = True
    batch = [{"image": noise(40, 60), "height": 80, "width": 90}, {"image": noise(50, 33)}]
    with torch.no_grad():
        results = model(batch)
    for result, size in zip(results, [(80, 90), (50, 33)], strict=True):
        assert result["sem_seg"].shape == (NUM_CLASSES, *size)
        assert result["panoptic_seg"][0].shape == size and result["panoptic_seg"][0].dtype == torch.int32
        assert result["instances"].image_size == size
        assert set(result["instances"].pred_classes.tolist()) <= {0, 2}


def test_semantic_scores_before_or_after_resizing():
    """Both ways agree where nothing has to be resized."""
    model = tiny_model().eval()
    batch = [{"image": noise(64, 32)}]
    with torch.no_grad():
        after = model(batch)[0]["sem_seg"]
        model.sem_seg_postprocess_before_inference = True
        torch.testing.assert_close(model(batch)[0]["sem_seg"], after)


def test_images_without_objects():
    model = tiny_model().train()
    nothing = Instances((64, 64), gt_classes=torch.zeros(0, dtype=torch.int64))
    losses = model([{"image": noise(64, 64), "instances": nothing}])
    assert losses["loss_mask"] == losses["loss_dice_0"] == 0 and losses["loss_ce"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    one = {"image": noise(64, 64), "instances": objects(64, 64, [1])}
    mixed = model([{"image": noise(64, 64), "instances": nothing}, one])
    assert mixed["loss_mask"] > 0


def test_targets_of_all_kinds_of_masks():
    model = tiny_model()
    images = ImageList(torch.zeros(1, 3, 32, 64), [(20, 40)])
    polygons = PolygonMasks([[[2.0, 2.0, 12.0, 2.0, 12.0, 8.0, 2.0, 8.0]]])
    bitmaps = BitMasks.from_polygon_masks(polygons, 20, 40)
    classes = torch.tensor([3])
    wanted = torch.zeros(1, 32, 64, dtype=torch.bool)
    wanted[0, 2:8, 2:12] = True
    for masks in (polygons, bitmaps, bitmaps.tensor):
        (target,) = model.prepare_targets([Instances((20, 40), gt_classes=classes, gt_masks=masks)], images)
        assert target["labels"].tolist() == [3] and torch.equal(target["masks"], wanted)
    with pytest.raises(ValueError, match="no gt_masks"):
        model.prepare_targets([Instances((20, 40), gt_classes=classes)], images)
    with pytest.raises(ValueError, match="no 'instances'"):
        model.train()([{"image": noise(20, 40)}])


def test_deep_supervision_can_be_left_out():
    model = tiny_model({"MODEL.MASK_FORMER.DEEP_SUPERVISION": False}).train()
    losses = model([{"image": noise(64, 64), "instances": objects(64, 64, [1])}])
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}


def test_panoptic_results_need_to_know_the_things():
    model = tiny_model({"MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True}).eval()
    with pytest.raises(ValueError, match="register that data set"), torch.no_grad():
        model([{"image": noise(64, 64)}])


def test_old_names_of_parameters():
    model = tiny_model(seed=1)
    old = {
        name.replace("pixel_decoder.", "").replace("query_feat", "static_query"): value
        for name, value in tiny_model(seed=2).state_dict().items()
    }
    absent, left = model.load_state_dict(old, strict=True)
    assert not absent and not left
    torch.testing.assert_close(model.state_dict(), tiny_model(seed=2).state_dict())


def test_optimized_form():
    """With a backbone whose norms are folded."""
    model = tiny_model({**RESNET, "MODEL.MASK_FORMER.TEST.INSTANCE_ON": True}).eval()
    fast = optimized_for_inference(model)
    batch = [{"image": noise(64, 96)}, {"image": noise(50, 40)}]
    with torch.no_grad():
        for want, got in zip(model(batch), fast(batch), strict=True):
            torch.testing.assert_close(got["sem_seg"], want["sem_seg"], atol=1e-4, rtol=1e-3)
            torch.testing.assert_close(got["instances"].scores, want["instances"].scores, atol=1e-4, rtol=1e-3)
