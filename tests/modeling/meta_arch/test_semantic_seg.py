import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY, SemanticSegmentor, build_model, build_sem_seg_head
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead, semantic_loss

IGNORE = 255
CLASSES = 5


@pytest.fixture
def segmentor_cfg(tiny_rcnn_cfg):
    def make(*changes):
        return tiny_rcnn_cfg(
            "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3"],
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES", CLASSES, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32, *changes,
        )  # fmt: skip

    return make


@pytest.fixture
def model(segmentor_cfg):
    return build_model(segmentor_cfg())


@pytest.fixture
def batch(rcnn_batch):
    """Two images of different size, with random label maps and some ignored rows."""

    def make(ignored_rows=4):
        items, generator = rcnn_batch(), torch.Generator().manual_seed(3)
        for item in items:
            size_hw = tuple(item["image"].shape[1:])
            item["sem_seg"] = torch.randint(0, CLASSES, size_hw, generator=generator)
            item["sem_seg"][:ignored_rows] = IGNORE
        return items

    return make


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignored_rows", [1000, 0, 4], ids=["no label at all", "all labelled", "some ignored"])
def test_training(model, batch, ignored_rows):
    losses = model(batch(ignored_rows))
    assert set(losses) == {"loss_sem_seg"} and torch.isfinite(losses["loss_sem_seg"])
    assert (losses["loss_sem_seg"] == 0) == (ignored_rows == 1000)
    losses["loss_sem_seg"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_training_lowers_the_loss(model, batch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    items = batch()
    for item in items:
        item["sem_seg"][:] = 2
    history = []
    for _ in range(10):
        loss = model(items)["loss_sem_seg"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.9 * history[0]


def test_labels_are_padded_with_what_is_ignored(model, batch):
    seen = []
    model.sem_seg_head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    items = batch()
    items[1]["sem_seg"] = items[1]["sem_seg"].to(torch.uint8)
    model(items)
    assert seen[0].shape == (2, 64, 96) and seen[0].dtype == torch.int64
    assert torch.equal(seen[0][1, :48, :80], items[1]["sem_seg"].long())
    assert (seen[0][1, 48:] == IGNORE).all() and (seen[0][1, :, 80:] == IGNORE).all()


def test_output_format(model, batch):
    model.eval()
    items = batch()
    items[1]["height"], items[1]["width"] = 30, 200
    with torch.no_grad():
        outputs = model(items)
        alone = model(items[:1])[0]["sem_seg"]
        head_output, _ = model.sem_seg_head(model.backbone(model.preprocess_image(items).tensor))
    assert [set(x) for x in outputs] == [{"sem_seg"}] * 2
    assert outputs[0]["sem_seg"].shape == (CLASSES, 64, 96) and outputs[1]["sem_seg"].shape == (CLASSES, 30, 200)
    torch.testing.assert_close(outputs[0]["sem_seg"], alone, atol=1e-4, rtol=1e-4)
    # no padding, no rescaling: the scores of the head themselves
    torch.testing.assert_close(outputs[0]["sem_seg"], head_output[0])


def test_half_precision_trains_two_steps(model, batch):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch())["loss_sem_seg"]
        assert torch.isfinite(loss) and loss.dtype == torch.float32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_copies_and_state_round_trip(model, segmentor_cfg, batch):
    model.eval()
    restored = build_model(segmentor_cfg()).eval()
    restored.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model(batch())[1]["sem_seg"]
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), restored):
            assert torch.equal(twin(batch())[1]["sem_seg"], expected)


def test_an_accelerator_is_not_asked_for_labels(model, batch):
    meta = model.to("meta")
    items = batch()
    for item in items:
        item["sem_seg"] = item["sem_seg"].to("meta")  # reading a value here would raise
    assert meta(items)["loss_sem_seg"].device.type == "meta"


def test_mistakes_are_named(model, batch):
    items = batch()
    items[1]["file_name"] = "a/b.jpg"
    items[1]["sem_seg"][20, 30] = 7
    with pytest.raises(ValueError, match=r"a/b\.jpg\) has the label 7 .*0 to 4 .*NUM_CLASSES.*255"):
        model(items)
    items[1]["sem_seg"][20, 30] = -1
    with pytest.raises(ValueError, match="the label -1"):
        model(items)
    items[1]["sem_seg"] = items[1]["sem_seg"][:-1]
    with pytest.raises(ValueError, match=r"\(47, 80\), its image \(height, width\) \(48, 80\)"):
        model(items)
    items[1]["sem_seg"] = torch.zeros(48, 80)
    with pytest.raises(TypeError, match=r"float32, expected integers"):
        model(items)
    del items[1]["sem_seg"]
    with pytest.raises(KeyError, match="input 1 of the batch has no 'sem_seg'"):
        model(items)
    del items[0]["sem_seg"]
    with pytest.raises(KeyError, match="'sem_seg'"):
        model(items)


def test_an_ignored_label_may_be_a_class(segmentor_cfg, batch):
    model = build_model(segmentor_cfg("MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 0))
    items = batch(0)
    assert torch.isfinite(model(items)["loss_sem_seg"])
    items[0]["sem_seg"][3, 3] = 9
    with pytest.raises(ValueError, match="the label 9"):
        model(items)


def test_without_a_config(model, batch):
    explicit = SemanticSegmentor(
        backbone=model.backbone, sem_seg_head=model.sem_seg_head, pixel_mean=[1, 2, 3], pixel_std=[1, 1, 1]
    )
    assert explicit.device.type == "cpu" and set(explicit.state_dict()) == set(model.state_dict())


def test_a_head_of_its_own_may_do_without_labels(model, rcnn_batch):
    class Constant(nn.Module):
        def forward(self, features, targets=None):
            assert targets is None
            return None, {"loss": features["p2"].sum()}

    model.sem_seg_head = Constant()
    assert set(model(rcnn_batch())) == {"loss"}


# --- the loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [0, 1, 12])
def test_loss_by_hand(labelled):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, 3, 3, 4))
    targets = np.full((1, 3, 4), 9)
    where = list(np.ndindex(3, 4))[:labelled]
    expected = []
    for y, x in where:
        k = int(rng.integers(3))
        targets[0, y, x] = k
        expected.append(np.log(np.exp(logits[0, :, y, x]).sum()) - logits[0, k, y, x])
    tensor = torch.from_numpy(logits).requires_grad_()
    loss = semantic_loss(tensor, torch.from_numpy(targets), 9)
    assert loss.item() == pytest.approx(np.mean(expected) if expected else 0.0)
    loss.backward()
    assert tensor.grad.isfinite().all() and bool(tensor.grad.any()) == bool(labelled)


# --- the head ---------------------------------------------------------------------------------------------------------

SHAPES = {"p4": ShapeSpec(channels=3, stride=16), "p2": ShapeSpec(channels=6, stride=4)}


def head_of(shapes=SHAPES, **changes):
    arguments = {"num_classes": CLASSES, "conv_dims": 4, "common_stride": 4}
    return SemSegFPNHead(shapes, **{**arguments, **changes})


def features_of(height=32, width=64, images=2):
    return {name: torch.randn(images, s.channels, height // s.stride, width // s.stride) for name, s in SHAPES.items()}


def test_names_and_shapes_of_the_state():
    head = head_of({**SHAPES, "p3": ShapeSpec(channels=2, stride=8)}, norm="LN")
    assert head.in_features == ["p2", "p3", "p4"]
    shapes = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    assert shapes == {
        "p2.0.weight": (4, 6, 3, 3), "p2.0.norm.weight": (4,), "p2.0.norm.bias": (4,),
        "p3.0.weight": (4, 2, 3, 3), "p3.0.norm.weight": (4,), "p3.0.norm.bias": (4,),
        "p4.0.weight": (4, 3, 3, 3), "p4.0.norm.weight": (4,), "p4.0.norm.bias": (4,),
        "p4.2.weight": (4, 4, 3, 3), "p4.2.norm.weight": (4,), "p4.2.norm.bias": (4,),
        "predictor.weight": (5, 4, 1, 1), "predictor.bias": (5,),
    }  # fmt: skip
    assert "p2.0.bias" in head_of().state_dict()


def test_maps_meet_at_the_common_stride():
    head = head_of().eval()
    features = features_of()
    with torch.no_grad():
        logits = head.layers(features)
        scores, losses = head(features)
        # Bilinear doubling keeps a constant: with constant maps every inner cell is the sum of the branches.
        one = {name: torch.ones_like(x) for name, x in features.items()}
        p2 = torch.relu(torch.nn.functional.conv2d(one["p2"], head.p2[0].weight, head.p2[0].bias, padding=1))
        p4 = one["p4"]
        for i in (0, 2):
            p4 = torch.relu(torch.nn.functional.conv2d(p4, head.p4[i].weight, head.p4[i].bias, padding=1))
            p4 = torch.nn.functional.interpolate(p4, scale_factor=2, mode="bilinear", align_corners=False)
        weight = head.predictor.weight[:, :, 0, 0]
        expected = torch.einsum("kc,nchw->nkhw", weight, p2 + p4) + head.predictor.bias[:, None, None]
    torch.testing.assert_close(head.layers(one), expected)
    assert logits.shape == (2, CLASSES, 8, 16) and scores.shape == (2, CLASSES, 32, 64) and losses == {}


def test_loss_weight_and_size():
    head, heavy = head_of(), head_of(loss_weight=2.5)
    heavy.load_state_dict(head.state_dict())
    targets = torch.randint(0, CLASSES, (2, 32, 64))
    features = features_of()
    scores, losses = head(features, targets)
    assert scores is None
    _, weighted = heavy(features, targets)
    torch.testing.assert_close(weighted["loss_sem_seg"], losses["loss_sem_seg"] * 2.5)


def test_no_images():
    scores, _ = head_of().eval()(features_of(images=0))
    assert scores.shape == (0, CLASSES, 32, 64)


def test_compiles_in_one_graph():
    head = head_of()
    features, targets = features_of(), torch.randint(0, CLASSES, (2, 32, 64))
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(features, targets)[1], head(features, targets)[1])
    head.eval()
    torch.testing.assert_close(compiled(features)[0], head(features)[0])


def test_a_lazy_config_builds_it():
    shapes = {f"p{n}": L(ShapeSpec)(channels=8, stride=2**n) for n in (3, 2)}
    cfg = L(SemSegFPNHead)(input_shape=shapes, num_classes=2, conv_dims=4, common_stride=4)
    built = instantiate(cfg)
    assert built.in_features == ["p2", "p3"] and built.p3[0].weight.shape == (4, 8, 3, 3)


def test_registry_and_wrong_shapes(segmentor_cfg, tiny_shapes):
    assert SEM_SEG_HEADS_REGISTRY.get("SemSegFPNHead") is SemSegFPNHead
    built = build_sem_seg_head(segmentor_cfg("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 0.25), tiny_shapes)
    assert isinstance(built, SemSegFPNHead)
    assert (built.loss_weight, built.ignore_value, built.common_stride, built.num_classes) == (0.25, 255, 4, CLASSES)
    with pytest.raises(ValueError, match=r"'p2' has stride 4.*common_stride 8"):
        head_of(common_stride=8)
    with pytest.raises(ValueError, match="'x' has stride 12"):
        head_of({"x": ShapeSpec(channels=1, stride=12)})
    with pytest.raises(ValueError, match="at least one feature map"):
        head_of({})
