import pytest
import torch

from detectron2.projects.deformable_detr import HungarianMatcher, Match, Prediction, SetCriterion, Targets, criterion

NONE = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
ONE = Targets(torch.tensor([2]), torch.tensor([[0.5, 0.5, 0.2, 0.4]]))


def prediction(images=1):
    """Two queries and three classes: the second query has the right box but for its width."""
    logits = torch.tensor([[[0.0, -1, -2], [0.5, 0, 1]]]).repeat(images, 1, 1)
    boxes = torch.tensor([[[0.1, 0.1, 0.1, 0.1], [0.5, 0.5, 0.1, 0.4]]]).repeat(images, 1, 1)
    return Prediction(logits, boxes)


def focal(logit, is_label):
    p = torch.tensor(logit).double().sigmoid()
    return 0.25 * (1 - p) ** 2 * -p.log() if is_label else 0.75 * p**2 * -(1 - p).log()


def test_no_objects():
    logits, boxes = (x.requires_grad_() for x in prediction())
    losses = SetCriterion()([Prediction(logits, boxes)], [NONE])
    assert losses["loss_bbox"] == losses["loss_giou"] == 0
    wanted = 2 * sum(focal(x, False) for x in (0.0, -1.0, -2.0, 0.5, 0.0, 1.0))
    assert float(losses["loss_ce"].detach()) == pytest.approx(float(wanted), rel=1e-5)
    sum(losses.values()).backward()
    assert boxes.grad.abs().max() == 0 < logits.grad.abs().min()


def test_values_of_one_object():
    losses = SetCriterion(class_weight=3.0)([prediction()], [ONE])
    others = sum(focal(x, False) for x in (0.0, -1.0, -2.0, 0.5, 0.0))
    assert float(losses["loss_ce"]) == pytest.approx(3 * float(others + focal(1.0, True)), rel=1e-5)
    assert float(losses["loss_bbox"]) == pytest.approx(5 * 0.1, rel=1e-5)
    assert float(losses["loss_giou"]) == pytest.approx(2 * (1 - 0.5), rel=1e-5)


def test_small_boxes_count_in_full():
    """A box of a thousandth of the image, twice as wide as predicted."""
    box = torch.tensor([[[0.5, 0.5, 0.0005, 0.001]]])
    target = Targets(torch.tensor([0]), torch.tensor([[0.5, 0.5, 0.001, 0.001]]))
    losses = SetCriterion()([Prediction(torch.zeros(1, 1, 1), box)], [target])
    assert float(losses["loss_giou"]) == pytest.approx(2 * 0.5, rel=1e-3)


def test_objects_of_the_whole_batch_divide():
    two = Targets(ONE.labels.repeat(2), torch.cat([ONE.boxes, ONE.boxes / 2]))
    of_three = SetCriterion()([prediction(3)], [two, ONE, NONE])
    alone = [SetCriterion()([prediction()], [target]) for target in (two, ONE, NONE)]
    for name, loss in of_three.items():
        total = sum(count * x[name] for count, x in zip((2, 1, 1), alone, strict=True))
        assert float(loss) == pytest.approx(float(total) / 3, rel=1e-5)


def test_names_of_layers():
    layers = [prediction()._replace(logits=torch.full((1, 2, 3), float(i))) for i in range(3)]
    losses = SetCriterion()(layers, [ONE])
    assert set(losses) == {f"loss_{x}{i}" for x in ("ce", "bbox", "giou") for i in ("", "_0", "_1")}
    assert losses["loss_ce"] == SetCriterion()(layers[2:], [ONE])["loss_ce"]
    assert losses["loss_ce_1"] == SetCriterion()(layers[1:2], [ONE])["loss_ce"]
    assert set(SetCriterion().matched(layers[0], [ONE], "_enc")) == {"loss_ce_enc", "loss_bbox_enc", "loss_giou_enc"}


def test_average_over_processes(monkeypatch):
    """Another process has five objects, this one has one."""
    monkeypatch.setattr(criterion.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(criterion.dist, "all_reduce", lambda total: total.add_(5))
    assert SetCriterion().count([ONE, NONE]) == 3
    monkeypatch.setattr(criterion.dist, "all_reduce", lambda total: None)
    assert SetCriterion().count([NONE]) == 1


def test_given_matches_and_repeated_objects():
    """As for denoising: both queries stand for the one object."""
    match = Match(torch.tensor([0, 1]), torch.tensor([0, 0]))
    losses = SetCriterion(HungarianMatcher(), box_weight=1.0).of_matches(
        prediction(), [ONE], [match], torch.tensor(2.0), "_dn"
    )
    assert float(losses["loss_bbox_dn"]) == pytest.approx((0.4 + 0.4 + 0.1 + 0.3 + 0.1) / 2, rel=1e-5)
