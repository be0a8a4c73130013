import itertools

import pytest
import torch

from detectron2.projects.deformable_detr import HungarianMatcher, Prediction, Targets


def some(queries, count, seed=0):
    """A prediction of an image and objects of it, at random."""
    random = torch.Generator().manual_seed(seed)
    sides = torch.rand(queries + count, 2, generator=random) * 0.3 + 0.05
    boxes = torch.cat([torch.rand(queries + count, 2, generator=random), sides], dim=1)
    labels = torch.randint(3, (count,), generator=random)
    return Prediction(torch.randn(1, queries, 3, generator=random), boxes[None, :queries]), Targets(
        labels, boxes[queries:]
    )


def slow_cost(prediction, target, query, index):
    """The cost of one pair, term by term."""
    p = float(prediction.logits[0, query, target.labels[index]].double().sigmoid())
    change = 0.25 * (1 - p) ** 2 * -torch.tensor(p).log() - 0.75 * p**2 * -torch.tensor(1 - p).log()
    a, b = (x.double() for x in (prediction.boxes[0, query], target.boxes[index]))
    corners = [(x[0] - x[2] / 2, x[1] - x[3] / 2, x[0] + x[2] / 2, x[1] + x[3] / 2) for x in (a, b)]
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners
    common = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = a[2] * a[3] + b[2] * b[3] - common
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    giou = common / union - (hull - union) / hull
    return float(2 * change + 5 * (a - b).abs().sum() - 2 * giou)


@pytest.mark.parametrize(("queries", "count"), [(4, 0), (0, 0), (4, 1), (4, 3), (2, 4)])
def test_least_sum_of_all_assignments(queries, count):
    prediction, target = some(queries, count)
    (match,) = HungarianMatcher()(prediction, [target])
    assert len(match.queries) == len(match.objects) == min(queries, count)
    cost = [[slow_cost(prediction, target, q, t) for t in range(count)] for q in range(queries)]
    found = sum(cost[q][t] for q, t in zip(match.queries.tolist(), match.objects.tolist(), strict=True))
    few, many = sorted((range(queries), range(count)), key=len)
    pairs = (zip(few, chosen, strict=True) for chosen in itertools.permutations(many, len(few)))
    sums = [sum(cost[a][b] if len(many) == count else cost[b][a] for a, b in assignment) for assignment in pairs]
    assert found == pytest.approx(min(sums), abs=1e-5)


def test_costs():
    prediction, target = some(3, 2, seed=1)
    cost = HungarianMatcher().cost(prediction.logits[0], prediction.boxes[0], target)
    assert cost.shape == (3, 2)
    assert all(float(cost[q, t]) == pytest.approx(slow_cost(prediction, target, q, t), abs=1e-5) for q in range(3)
               for t in range(2))  # fmt: skip


def test_images_do_not_share_objects():
    (a, first), (b, second) = some(4, 2), some(4, 3, seed=2)
    both = Prediction(torch.cat([a.logits, b.logits]), torch.cat([a.boxes, b.boxes]))
    matches = HungarianMatcher()(both, [first, second])
    alone = [*HungarianMatcher()(a, [first]), *HungarianMatcher()(b, [second])]
    for match, other in zip(matches, alone, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(match, other, strict=True))


def test_what_is_not_a_number_is_matched_last():
    prediction, target = some(4, 2)
    prediction.logits[0, :2] = float("nan")
    (match,) = HungarianMatcher()(prediction, [target])
    assert match.queries.tolist() == [2, 3]
