"""Deformable DETR beside the one of transformers, with the same weights and the same backbone."""

import copy

import pytest
import torch
from torch import nn

from detectron2.projects.deformable_detr.detector import padding_mask

from .conftest import SIZES_HW, names_in_transformers, tiny_model

transformers = pytest.importorskip("transformers")
KINDS = ["plain", "refined", "two_stage"]


class _Backbone(nn.Module):
    """A backbone of ours as transformers calls it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values, pixel_mask):
        mask = pixel_mask[None].float()
        maps = self.backbone(pixel_values).values()
        return [(x, nn.functional.interpolate(mask, size=x.shape[-2:])[0].bool()) for x in maps]


def twin(model):
    """The model of transformers with the weights of ours."""
    detr = model.transformer
    config = transformers.DeformableDetrConfig(
        backbone_config={"model_type": "resnet", "layer_type": "basic", "depths": [1, 1, 1, 1], "embedding_size": 8,
                         "hidden_sizes": [8, 16, 32, 64], "out_features": ["stage2", "stage3", "stage4"]},
        use_timm_backbone=False, num_queries=12, two_stage_num_proposals=12, num_labels=5, d_model=64,
        encoder_layers=2, decoder_layers=3, encoder_ffn_dim=40, decoder_ffn_dim=40, encoder_attention_heads=4,
        decoder_attention_heads=4, dropout=0.0, auxiliary_loss=True, two_stage=detr.two_stage,
        with_box_refine=detr.decoder.bbox_embed is not None, class_cost=2,
    )  # fmt: skip
    other = transformers.DeformableDetrForObjectDetection(config)
    other.model.backbone = nn.Identity()
    if config.with_box_refine:  # a new model of transformers has one head for all layers even then
        other.bbox_embed = other.model.decoder.bbox_embed = copy.deepcopy(model.bbox_embed)
        other.class_embed = copy.deepcopy(model.class_embed)
        if config.two_stage:
            other.model.decoder.class_embed = other.class_embed
    report = other.load_state_dict(names_in_transformers(model.state_dict()), strict=True)
    assert not report.missing_keys and not report.unexpected_keys
    other.model.backbone = _Backbone(model.backbone)
    return other


def network_inputs(model, batch):
    images = model.preprocess_image(batch)
    padding = padding_mask(torch.tensor(images.image_sizes), images.tensor.shape[2:])
    return images.tensor, padding


def in_parts(item):
    """Boxes of an input as `(centre x, centre y, width, height)` in parts of the image."""
    height, width = item["image"].shape[1:]
    x1, y1, x2, y2 = item["instances"].gt_boxes.tensor.unbind(1)
    return torch.stack([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height], dim=1)


class TestBesideTransformers:
    @pytest.mark.parametrize("kind", KINDS)
    def test_no_objects_at_all(self, kind, batch):
        model = tiny_model(kind)
        losses = model(batch[2:])
        assert all(float(loss.detach()) == 0 for name, loss in losses.items() if "ce" not in name)
        sum(losses.values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize("kind", KINDS)
    def test_predictions_of_each_layer(self, kind, batch):
        model = tiny_model(kind).eval()
        images, padding = network_inputs(model, batch)
        other = twin(model).eval()
        with torch.no_grad():
            layers, proposals = model.predict(model.backbone(images), padding)
            wanted = other(images, (~padding).long(), labels=[{"class_labels": torch.zeros(0, dtype=torch.int64),
                                                               "boxes": torch.zeros(0, 4)}] * 3)  # fmt: skip
        pairs = [*wanted.auxiliary_outputs, {"logits": wanted.logits, "pred_boxes": wanted.pred_boxes}]
        assert len(layers) == len(pairs) == 3
        for layer, pair in zip(layers, pairs, strict=True):
            assert (layer.logits - pair["logits"]).abs().max() < 1e-4
            assert (layer.boxes - pair["pred_boxes"]).abs().max() < 1e-5
        assert layers[0].logits.std(1).mean() > 0.05  # queries differ, so there is something to compare
        assert (proposals is None) == (kind != "two_stage")
        if proposals is not None:
            assert (proposals.logits - wanted.enc_outputs_class).abs().max() < 1e-4
            assert (proposals.boxes - wanted.enc_outputs_coord_logits.sigmoid()).abs().max() < 1e-5

    @pytest.mark.parametrize("kind", KINDS)
    def test_losses_and_gradients(self, kind, batch):
        model = tiny_model(kind)
        other = twin(model)
        images, padding = network_inputs(model, batch)
        labels = [{"class_labels": x["instances"].gt_classes, "boxes": in_parts(x)} for x in batch]
        wanted = other(images, (~padding).long(), labels=labels)
        losses = model(batch)
        weights = {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
        total, compared = 0.0, set()
        for name, value in wanted.loss_dict.items():
            weight = weights.get(name.rstrip("_0123456789"))
            if weight is not None:
                assert float(losses[name].detach()) == pytest.approx(weight * float(value.detach()), rel=1e-4), name
                total, compared = total + weight * value, compared | {name}
        assert len(compared) == 9
        further = set(losses) - compared
        assert further == ({"loss_ce_enc", "loss_bbox_enc", "loss_giou_enc"} if kind == "two_stage" else set())
        sum(losses[name] for name in compared).backward()
        mine = names_in_transformers({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
        total.backward()
        theirs = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
        assert {name for name in theirs if ".backbone." not in name} == set(mine)
        for name, gradient in mine.items():
            assert torch.allclose(gradient, theirs[name], rtol=1e-3, atol=1e-4), name

    @pytest.mark.parametrize("kind", KINDS)
    def test_detections(self, kind, batch):
        model = tiny_model(kind).eval()
        images, padding = network_inputs(model, batch)
        other = twin(model).eval()
        with torch.no_grad():
            found, outputs = model(batch), other(images, (~padding).long())
        sizes = torch.tensor([[2.0 * h, 3.0 * w] for h, w in SIZES_HW])
        processor = transformers.DeformableDetrImageProcessor()
        wanted = processor.post_process_object_detection(outputs, 0.0, sizes, top_k=60)
        for ours, theirs, (height, width) in zip(found, wanted, sizes.tolist(), strict=True):
            ours = ours["instances"]
            assert len(ours) > 20
            boxes = theirs["boxes"].clamp(min=0)
            boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
            kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
            assert torch.allclose(ours.scores, theirs["scores"][kept], atol=1e-5)
            assert torch.equal(ours.pred_classes, theirs["labels"][kept])
            assert torch.allclose(ours.pred_boxes.tensor, boxes[kept], atol=1e-2)
