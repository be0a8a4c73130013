import pytest
import torch

from detectron2.projects.deformable_detr import Targets
from detectron2.projects.deformable_detr.denoising import noisy_queries


def targets(*counts):
    """Images with so many objects, of 5 classes."""
    random = torch.Generator().manual_seed(0)
    return [
        Targets(
            torch.randint(5, (n,), generator=random),
            torch.rand(n, 4, generator=random) * torch.tensor([0.6, 0.6, 0.3, 0.3]) + torch.tensor([0.2, 0.2, 0, 0]),
        )
        for n in counts
    ]


def noisy(of, **options):
    return noisy_queries(of, **{"num_classes": 5, "num_queries": 6, "number": 10, **options})


def test_no_objects():
    assert noisy([]) is None
    assert noisy(targets(0, 0)) is None


@pytest.mark.parametrize(("most", "number", "groups"), [(1, 10, 10), (3, 10, 3), (3, 2, 1), (10, 10, 1)])
def test_number_of_groups(most, number, groups):
    found = noisy(targets(0, most), number=number)
    assert found.num_groups == groups and found.labels.shape == (2, 2 * most * groups)


def test_without_noise():
    of = targets(2, 3, 0)
    found = noisy(of, label_noise_ratio=0.0, box_noise_scale=0.0)
    for image, (target, match) in enumerate(zip(of, found.matches, strict=True)):
        for group in range(3):
            for part in (0, 3):  # positive and negative ones
                first, count = group * 6 + part, len(target.labels)
                assert torch.equal(found.labels[image, first : first + count], target.labels)
                assert torch.allclose(found.boxes[image, first : first + count], target.boxes, atol=1e-6)
                assert (found.labels[image, first + count : first + 3] == 5).all()
        assert torch.equal(found.labels[image, match.queries], target.labels[match.objects])
    assert found.matches[0].queries.tolist() == [0, 1, 6, 7, 12, 13]
    assert found.matches[2].queries.tolist() == found.matches[2].objects.tolist() == []


def test_size_of_noise():
    of = [Targets(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.1]]))]
    found = noisy(of, number=3000, box_noise_scale=0.4)
    center, sides = found.boxes[0, :, :2], found.boxes[0, :, 2:]
    corners = torch.cat([center - sides / 2, center + sides / 2], dim=1)
    moved = (corners - torch.tensor([0.4, 0.45, 0.6, 0.55])).abs() / torch.tensor([0.1, 0.05, 0.1, 0.05])
    assert moved[::2].max() <= 0.4 + 1e-4 and moved[::2].min() < 0.01
    assert moved[1::2].max() <= 0.8 + 1e-4 and moved[1::2].min() >= 0.4 - 1e-4
    # Of five classes one is the right one already.
    assert (found.labels != 1).float().mean() == pytest.approx(0.25 * 4 / 5, abs=0.03)


def test_who_sees_whom():
    mask = noisy(targets(2, 1), number=4).attention_mask  # 2 groups of 4, and 6 queries
    group = [0] * 4 + [1] * 4 + [None] * 6
    for row, of_row in enumerate(group):
        for column, of_column in enumerate(group):
            sees = of_column is None or of_column == of_row
            assert bool(mask[row, column]) != sees


def test_noise_is_of_the_generator_of_torch():
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(noisy(targets(3)))
    assert torch.equal(found[0].boxes, found[1].boxes) and torch.equal(found[0].labels, found[1].labels)
    assert not torch.equal(found[0].boxes, found[2].boxes)


def test_beside_rt_detr():
    """The same numbers for the same seed, where there is an object."""
    pytest.importorskip("transformers")
    from transformers.models.rt_detr.modeling_rt_detr import get_contrastive_denoising_training_group

    of = targets(2, 3, 0)
    torch.manual_seed(3)
    labels, box_logits, mask, about = get_contrastive_denoising_training_group(
        [{"class_labels": x.labels, "boxes": x.boxes} for x in of], 5, 6, lambda x: x, 10, 0.5, 1.0
    )
    torch.manual_seed(3)
    found = noisy(of)
    is_object = found.labels < 5
    assert torch.equal(found.labels, labels.long())
    assert torch.allclose(found.boxes.clamp(0, 1)[is_object], box_logits.sigmoid()[is_object], atol=1e-4)
    assert torch.equal(found.attention_mask, mask.isinf())
    assert found.num_groups == about["dn_num_group"]
    for match, positive in zip(found.matches, about["dn_positive_idx"], strict=True):
        assert torch.equal(match.queries, positive)
