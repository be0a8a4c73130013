"""Which labels are refused; how many elements are drawn, and from where."""

import pytest
import torch

from detectron2.modeling.sampling import check_labels, subsample_labels
from detectron2.structures import Instances

# (positives, negatives, ignored, asked for, fraction) -> (positives, negatives) drawn
TABLE = [
    ((0, 0, 0, 8, 0.5), (0, 0)),
    ((0, 0, 5, 8, 0.5), (0, 0)),
    ((2, 20, 3, 8, 0.5), (2, 6)),
    ((20, 20, 0, 8, 0.25), (2, 6)),
    ((20, 3, 0, 8, 0.25), (2, 3)),
    ((20, 20, 0, 7, 0.5), (3, 4)),
    ((3, 0, 4, 8, 1.0), (3, 0)),
    ((5, 5, 5, 0, 0.5), (0, 0)),
]


@pytest.mark.parametrize(("case", "expected"), TABLE)
@pytest.mark.parametrize("background", [0, 80])
def test_counts(case, expected, background):
    num_positive, num_negative, num_ignored, num_samples, fraction = case
    labels = torch.tensor([7] * num_positive + [background] * num_negative + [-1] * num_ignored, dtype=torch.int64)
    labels = labels[torch.randperm(len(labels))]
    positive, negative = subsample_labels(labels, num_samples, fraction, background)
    assert (len(positive), len(negative)) == expected
    assert (labels[positive] == 7).all() and (labels[negative] == background).all()
    assert len(set(positive.tolist())) == len(positive) and len(set(negative.tolist())) == len(negative)


def test_every_element_has_a_chance():
    labels = torch.zeros(10, dtype=torch.int8)
    seen = {subsample_labels(labels, 1, 0.5, 0)[1].item() for _ in range(300)}
    assert seen == set(range(10))


def test_check_labels():
    image = Instances((9, 9))
    check_labels([], 3, "")
    check_labels([image, Instances((9, 9), gt_classes=torch.tensor([0, 2]))], 3, "")
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=rf"image 1 .* label {wrong}, .*0 to 2; set K to the number of classes"):
            check_labels([image, Instances((9, 9), gt_classes=torch.tensor([0, wrong]))], 3, "set K")
