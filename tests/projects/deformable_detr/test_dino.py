"""DINO beside a slow reference, and what denoising must not do."""

import math

import pytest
import torch

from detectron2.projects.deformable_detr import DeformableTransformer, DINOTransformer, SetCriterion
from detectron2.projects.deformable_detr.denoising import noisy_queries
from detectron2.projects.deformable_detr.detector import padding_mask

from .conftest import make_batch, tiny_model
from .test_transformer import sizes


def seen(model, batch):
    """Features, padding, and the objects of each image as the network sees them."""
    images = model.preprocess_image(batch)
    sizes = torch.tensor(images.image_sizes)
    targets = model._ground_truth(batch, sizes)
    return model.backbone(images.tensor), padding_mask(sizes, images.tensor.shape[2:]), targets


def inverse_sigmoid(x):
    return (x.clamp(1e-3, 1) / (1 - x).clamp(1e-3, 1)).log()


def sines(x, channels):
    """Sines and cosines of one number, one after the other."""
    angles = [x * 2 * math.pi / 10000 ** (2 * i / channels) for i in range(channels // 2)]
    return [f(angle) for angle in angles for f in (math.sin, math.cos)]


def slow_predictions(model, features, padding, mixed, twice):
    """Logits and boxes of each layer by section 3 of the paper, query by query where that matters."""
    transformer, decoder = model.transformer, model.transformer.decoder
    levels, memory = transformer.encode(*model._maps(features, padding))
    cells, anchors = transformer.propose(memory, levels)
    scores = transformer.enc_out_class_embed(cells)
    box_logits = transformer.enc_out_bbox_embed(cells) + anchors
    best = [sorted(range(cells.shape[1]), key=lambda s: -float(image[s].detach().max()))[:12] for image in scores]
    reference = torch.stack([x[i] for x, i in zip(box_logits, best, strict=True)]).detach().sigmoid()
    if mixed:
        queries = transformer.tgt_embed.weight.repeat(len(memory), 1, 1)
    else:
        queries = torch.stack([x[i] for x, i in zip(cells, best, strict=True)]).detach()
    ratios = levels.image_wh[:, 0] / torch.tensor([levels.shapes[0][1], levels.shapes[0][0]])
    kept, found = reference, []
    for i, layer in enumerate(decoder.layers):
        embedded = [
            [sines(y * ry, 32) + sines(x * rx, 32) + sines(w * rx, 32) + sines(h * ry, 32)
             for x, y, w, h in image.tolist()]
            for image, (rx, ry) in zip(reference, ratios.tolist(), strict=True)
        ]  # fmt: skip
        positions = decoder.ref_point_head(torch.tensor(embedded))
        queries = layer(queries, positions, levels.on_maps(reference), memory, levels)
        normed = decoder.norm(queries)
        boxes = (model.bbox_embed[i](normed) + inverse_sigmoid(kept)).sigmoid()
        found.append((model.class_embed[i](normed), boxes))
        kept = (model.bbox_embed[i](queries) + inverse_sigmoid(reference)).sigmoid()
        reference = kept.detach()
        kept = kept if twice else reference
    return found


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("twice", [True, False])
def test_predictions_and_gradients_of_each_layer(mixed, twice, batch):
    options = ["MODEL.DINO.MIXED_QUERY_SELECTION", mixed, "MODEL.DINO.LOOK_FORWARD_TWICE", twice]
    model = tiny_model("DINO", *options)
    features, padding, _ = seen(model, batch)
    layers, _ = model.predict(features, padding)
    wanted = slow_predictions(model, features, padding, mixed, twice)
    random = torch.Generator().manual_seed(0)
    totals = []
    weights = [torch.randn(x.shape, generator=random) for x in layers[-1]]
    for found in (layers, wanted):
        totals.append(sum((weight * x).sum() for pair in found for weight, x in zip(weights, pair, strict=True)))
    for (logits, boxes), (their_logits, their_boxes) in zip(layers, wanted, strict=True):
        assert (logits - their_logits).abs().max() < 1e-4
        assert (boxes - their_boxes).abs().max() < 1e-5
    parameters = [p for p in model.transformer.parameters() if p.requires_grad]
    gradients = [torch.autograd.grad(x, parameters, allow_unused=True, retain_graph=True) for x in totals]
    for mine, theirs in zip(*gradients, strict=True):
        assert (mine is None) == (theirs is None)
        assert mine is None or torch.allclose(mine, theirs, rtol=1e-3, atol=1e-3)


def test_looking_forward_twice_improves_the_layer_before(batch):
    """Boxes of the second layer depend on what the first one predicts, or they do not."""
    for twice in (True, False):
        model = tiny_model("DINO", "MODEL.DINO.LOOK_FORWARD_TWICE", twice)
        features, padding, _ = seen(model, batch)
        deltas = []
        model.bbox_embed[0].register_forward_hook(lambda module, args, out, deltas=deltas: deltas.append(out))
        layers, _ = model.predict(features, padding)
        # The heads are shared: the first call is of the first layer, within the decoder.
        (gradient,) = torch.autograd.grad(layers[1].boxes.sum(), deltas[0], allow_unused=True)
        assert (gradient is not None and bool(gradient.abs().max() > 0)) == twice


def test_encoder_is_that_of_deformable_detr():
    """The same weights give the same memory, features and boxes of proposals."""
    torch.manual_seed(0)
    options = sizes(2, 2)
    one, other = DeformableTransformer(two_stage=True, **options), DINOTransformer(5, **options)
    result = other.load_state_dict(one.state_dict(), strict=False)
    assert all(name.startswith(("tgt_embed", "decoder.")) for name in result.missing_keys)
    paddings = [torch.zeros(2, *hw, dtype=torch.bool) for hw in ((4, 6), (2, 3))]
    paddings[0][1, :, 4:] = paddings[1][1, :, 2:] = True
    maps = [torch.randn(2, 32, *p.shape[1:]) for p in paddings]
    results = []
    for transformer in (one, other):
        levels, memory = transformer.encode(maps, [x * 0.1 for x in maps], paddings)
        results.append((memory, *transformer.propose(memory, levels)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestDenoising:
    def test_no_objects_at_all(self, batch):
        """The same losses by name, and a gradient for every weight."""
        model = tiny_model("DINO")
        losses, others = model(batch[2:]), model(batch)
        assert set(losses) == set(others) and len(losses) == 3 * (3 + 1 + 3)
        assert all(float(loss.detach()) == 0 for name, loss in losses.items() if "ce" not in name or "_dn" in name)
        sum(losses.values()).backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_queries_that_search_see_nothing_of_it(self, batch):
        model = tiny_model("DINO")
        features, padding, targets = seen(model, batch)
        noisy = noisy_queries(targets, num_classes=5, num_queries=12)
        alone, _ = model.predict(features, padding)
        layers, _ = model.predict(features, padding, noisy)
        first = noisy.labels.shape[1]
        for layer, other in zip(layers, alone, strict=True):
            assert torch.allclose(layer.logits[:, first:], other.logits, atol=1e-4)
            assert torch.allclose(layer.boxes[:, first:], other.boxes, atol=1e-5)

    def test_groups_see_nothing_of_each_other(self, batch):
        model = tiny_model("DINO")
        features, padding, targets = seen(model, batch)
        noisy = noisy_queries(targets, num_classes=5, num_queries=12, number=4)
        before, _ = model.predict(features, padding, noisy)
        noisy.boxes[:, 4:] = 0.3
        after, _ = model.predict(features, padding, noisy)
        assert torch.allclose(before[-1].logits[:, :4], after[-1].logits[:, :4], atol=1e-4)
        assert not torch.allclose(before[-1].logits[:, 4:8], after[-1].logits[:, 4:8], atol=1e-2)

    def test_values_of_losses(self, batch):
        """Restored queries have an object each, all others none; and both are divided by objects times groups."""
        model = tiny_model("DINO")
        features, padding, targets = seen(model, batch)
        torch.manual_seed(5)
        losses = model.losses(features, padding, targets)
        torch.manual_seed(5)
        noisy = noisy_queries(targets, num_classes=5, num_queries=12)
        layers, proposals = model.predict(features, padding, noisy)
        first, divisor = noisy.labels.shape[1], 3 * noisy.num_groups
        logits, boxes = layers[1].logits[:, :first].double(), layers[1].boxes[:, :first]
        labels, distance = torch.zeros_like(logits), 0.0
        for image, target in enumerate(targets):
            for group in range(noisy.num_groups):
                for i, (label, box) in enumerate(zip(target.labels, target.boxes, strict=True)):
                    labels[image, group * 4 + i, label] = 1
                    distance += (boxes[image, group * 4 + i] - box).abs().sum()
        p = logits.sigmoid()
        focal = -torch.where(labels > 0, 0.25 * (1 - p) ** 2 * p.log(), 0.75 * p**2 * (1 - p).log()).sum()
        assert torch.allclose(losses["loss_ce_dn_1"], (2 * focal / divisor).float(), rtol=1e-4)
        assert torch.allclose(losses["loss_bbox_dn_1"], 5 * distance / divisor, rtol=1e-4)
        of_proposals = SetCriterion().matched(proposals, targets, "_interm")
        assert all(torch.allclose(losses[name], value) for name, value in of_proposals.items())

    def test_turned_off(self, batch):
        model = tiny_model("DINO", "MODEL.DINO.DN_NUMBER", 0)
        assert not any("_dn" in name for name in model(batch))


def test_detections(batch):
    model = tiny_model("DINO", "TEST.DETECTIONS_PER_IMAGE", 300).eval()
    with torch.no_grad():
        results = [x["instances"] for x in model(batch)]
    assert all(0 < len(x) <= 60 and (x.scores.diff() <= 0).all() for x in results)


def test_processes_exchange_as_often_without_objects(monkeypatch):
    """Otherwise one process would wait for ever for another, whose images are empty."""
    counted = []
    count = SetCriterion.count
    monkeypatch.setattr(SetCriterion, "count", lambda self, targets: counted.append(1) or count(self, targets))
    model, calls = tiny_model("DINO").train(), []
    for inputs in (make_batch()[:1], make_batch()[2:]):
        counted.clear()
        model(inputs)
        calls.append(len(counted))
    assert calls[0] == calls[1] <= 3
