"""Which regions the heads learn from: choices among labelled proposals, and checks of their labels.

`R` regions of one image, `K` foreground classes. Class index `K` is background, -1 a region to be passed over.
"""

from collections.abc import Sequence

import torch

from detectron2.layers import nonzero_tuple
from detectron2.structures import Instances
from detectron2.utils.events import put_scalar

__all__ = ["check_labels", "mean_count", "select_foreground_proposals", "select_proposals_with_visible_keypoints"]


def mean_count(counts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean of 0-d integer tensors, one for each image, as a 0-d tensor: nothing waits for the device."""
    return torch.stack(list(counts)).float().mean() if counts else torch.zeros(())


def check_labels(targets: Sequence[Instances], num_classes: int) -> None:
    """Raise a ValueError when a ground truth label lies outside `[0, num_classes)`.

    Without it such a label is trained as background, or fails far from here. Labels on an accelerator are not looked
    at: to read them would make every step wait; the data loader's validation looks at them before training.
    """
    for i, per_image in enumerate(targets):
        if not per_image.has("gt_classes"):
            continue
        labels = per_image.gt_classes
        if labels.device.type != "cpu" or labels.numel() == 0:
            continue
        low, high = (int(x) for x in labels.aminmax())
        if low < 0 or high >= num_classes:
            bad = low if low < 0 else high
            raise ValueError(
                f"image {i} of the batch has the label {bad}, but the model has {num_classes} classes, "
                f"whose labels are 0 to {num_classes - 1}; set MODEL.ROI_HEADS.NUM_CLASSES to the number of classes "
                "of the data set, or correct the annotation"
            )


def select_foreground_proposals(
    proposals: list[Instances], bg_label: int
) -> tuple[list[Instances], list[torch.Tensor]]:
    """Keep the regions that are labelled as an object.

    Args:
        proposals: regions of each image with `gt_classes`.
        bg_label: the label of background, which is the number of classes.

    Returns:
        The foreground regions of each image, and for each image the mask `Tensor[R]` that chose them.
    """
    if proposals and not proposals[0].has("gt_classes"):
        raise ValueError(
            "foreground can only be told by `gt_classes`, which the proposals lack; they have "
            f"{sorted(proposals[0].get_fields())}: label them with label_and_sample_proposals first"
        )
    masks = [(x.gt_classes != -1) & (x.gt_classes != bg_label) for x in proposals]
    chosen = [x[nonzero_tuple(mask)[0]] for x, mask in zip(proposals, masks, strict=True)]
    return chosen, masks


def select_proposals_with_visible_keypoints(proposals: list[Instances]) -> list[Instances]:
    """Keep the regions with at least one keypoint that is labelled and lies inside the proposal's box.

    A region without such a keypoint would add nothing to the loss but work.

    Args:
        proposals: foreground regions of each image with `proposal_boxes` and `gt_keypoints` (visibility 0 means that
            a keypoint is not labelled). Images without regions may lack the fields.

    Returns:
        The chosen regions of each image.
    """
    chosen = []
    for per_image in proposals:
        if len(per_image) == 0:
            chosen.append(per_image)
            continue
        keypoints = per_image.gt_keypoints.tensor  # (x, y, visibility)
        boxes_xyxy = per_image.proposal_boxes.tensor.unsqueeze(1)
        xy = keypoints[:, :, :2]
        inside = ((xy >= boxes_xyxy[:, :, :2]) & (xy <= boxes_xyxy[:, :, 2:])).all(dim=2)
        learnable = (inside & (keypoints[:, :, 2] >= 1)).any(dim=1)
        chosen.append(per_image[nonzero_tuple(learnable)[0]])
    # Known without asking the device: the lengths are already here.
    put_scalar("keypoint_head/num_fg_samples", sum(len(x) for x in chosen) / max(len(chosen), 1))
    return chosen
