"""From the dense predictions of a region proposal network to a short list of proposals.

Letters: `N` images, `L` levels, `R_i` anchors of level i, `M` candidates of an image over all levels.
Boxes are `(x1, y1, x2, y2)` in pixels of the network input, continuous coordinates.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from detectron2.layers import batched_nms, cat
from detectron2.layers.nms import greedy_nms
from detectron2.layers.wrappers import at_most
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.utils.events import get_event_storage, has_event_storage

# Projects import this name from here, hence the redundant alias; nothing here asks it.
from detectron2.utils.tracing import is_tracing as _is_tracing  # noqa: F401

from .. import fixed_shapes

__all__ = ["add_ground_truth_to_proposals", "add_ground_truth_to_proposals_single_image", "find_top_rpn_proposals"]


class _ProposalError(ValueError, AssertionError):
    """Ground truth and proposals do not fit; code written for the published system catches an `AssertionError`."""


# The objectness logit of ground truth among proposals: that of a probability of 1 - 1e-10.
_GROUND_TRUTH_LOGIT = math.log((1.0 - 1e-10) / 1e-10)


def _top_candidates(
    pred_objectness_logits: Sequence[torch.Tensor], pre_nms_topk: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """For each level `(N, R_i)` the logits and indices of its best anchors, `Tensor[N, min(R_i, k)]`, best first."""
    picked = [logits.topk(at_most(logits.shape[1], pre_nms_topk), dim=1) for logits in pred_objectness_logits]
    return [p.values for p in picked], [p.indices for p in picked]


def _proposals_from_candidates(
    boxes: list[torch.Tensor],
    logits: list[torch.Tensor],
    image_sizes: Sequence[tuple[int, int]],
    nms_thresh: float,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> Any:
    """The second half of `find_top_rpn_proposals`: `boxes[i]` is `Tensor[N, M_i, B]`, `logits[i]` `Tensor[N, M_i]`."""
    level = cat([torch.full((b.shape[1],), i, dtype=torch.int64, device=b.device) for i, b in enumerate(boxes)])
    all_boxes = cat(boxes, dim=1)
    box_type = RotatedBoxes if all_boxes.shape[2] == 5 else Boxes
    all_logits = cat(logits, dim=1).to(all_boxes.dtype)  # under autocast the logits are of lower precision
    finite = torch.isfinite(all_boxes).all(dim=2) & torch.isfinite(all_logits)
    if training and box_type is Boxes and fixed_shapes.runs_ahead(all_boxes.device):
        clipped_boxes = [Boxes(b) for b in torch.where(finite[..., None], all_boxes, 0.0)]
        for of_image, image_size in zip(clipped_boxes, image_sizes, strict=False):
            of_image.clip(image_size)
        has_area = torch.stack([of_image.nonempty(threshold=min_box_size) for of_image in clipped_boxes])
        return fixed_shapes.padded_proposals(
            torch.stack([of_image.tensor for of_image in clipped_boxes]),
            all_logits,
            finite & has_area,
            level,
            len(boxes),
            image_sizes,
            nms_thresh,
            post_nms_topk,
            finite.all(),
            lambda: _not_finite_message(all_boxes, all_logits, finite),
        )
    if training and not bool(finite.all()):
        raise FloatingPointError(_not_finite_message(all_boxes, all_logits, finite))

    proposals = []
    for image_boxes, image_logits, image_finite, image_size in zip(
        all_boxes, all_logits, finite, image_sizes, strict=False
    ):
        clipped = box_type(image_boxes)
        clipped.clip(image_size)
        keep = (image_finite & clipped.nonempty(threshold=min_box_size)).nonzero(as_tuple=True)[0]
        candidates, scores = clipped.tensor[keep], image_logits[keep]
        if box_type is Boxes:
            best = batched_nms(candidates, scores, level[keep], nms_thresh)[:post_nms_topk]
        else:  # stops when it has enough
            best = greedy_nms(candidates, scores, nms_thresh, level[keep], limit=post_nms_topk)
        boxes_of_image = box_type(candidates[best])
        proposals.append(Instances(image_size, proposal_boxes=boxes_of_image, objectness_logits=scores[best]))
    return proposals


def _not_finite_message(boxes: torch.Tensor, logits: torch.Tensor, finite: torch.Tensor) -> str:
    when = f" in iteration {get_event_storage().iter}" if has_event_storage() else ""
    images = (~finite).any(dim=1).nonzero().flatten().tolist()
    what = [
        name for name, values in (("box deltas", boxes), ("objectness logits", logits)) if not values.isfinite().all()
    ]
    return (
        f"the region proposal network predicted Inf or NaN {' and '.join(what)}{when}, for {int((~finite).sum())} of "
        f"{finite.numel()} candidates, in images {images} of the batch: training has diverged. Lower the learning rate "
        "(it grows in proportion to the batch size), lengthen the warmup, clip gradients, and look for ground truth "
        "without area or with coordinates far outside its image"
    )


def find_top_rpn_proposals(
    proposals: list[torch.Tensor],
    pred_objectness_logits: list[torch.Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """Choose the proposals of each image from the boxes of all anchors (Ren et al. 2015, section 3.3).

    For each level the `pre_nms_topk` boxes of highest logit; of these, clipped to the image and without tiny ones,
    those that survive non-maximum suppression within their level; of these the `post_nms_topk` best over all levels.

    Args:
        proposals: for each level the decoded boxes `Tensor[N, R_i, 4]`, or `Tensor[N, R_i, 5]` of rotated boxes.
        pred_objectness_logits: for each level `Tensor[N, R_i]`.
        image_sizes: `(height, width)` of each image; of fewer images, the first ones get proposals.
        nms_thresh: IoU above which the lower of two boxes goes.
        pre_nms_topk: how many boxes a level keeps before suppression.
        post_nms_topk: how many boxes an image keeps after suppression; in training, too, for each image on its own.
        min_box_size: boxes with a side of this many pixels (of the network input) or fewer go.
        training: whether the model is being trained: then Inf and NaN are errors; otherwise such boxes are dropped.

    Returns:
        For each image its proposals, best first, with the fields `proposal_boxes` and `objectness_logits`.

    Raises:
        FloatingPointError: in training, when boxes or logits are not finite.
    """
    logits, indices = _top_candidates(pred_objectness_logits, pre_nms_topk)
    boxes = [b.gather(1, i[..., None].expand(-1, -1, b.shape[2])) for b, i in zip(proposals, indices, strict=True)]
    return _proposals_from_candidates(boxes, logits, image_sizes, nms_thresh, post_nms_topk, min_box_size, training)


def add_ground_truth_to_proposals(
    gt: Sequence[Instances] | Sequence[Boxes], proposals: list[Instances]
) -> list[Instances]:
    """Append each image's ground truth to its proposals, so that a young network has positives to learn from.

    Args:
        gt: for each image its ground truth with the field `gt_boxes`, or its boxes alone.
        proposals: for each image its proposals.

    Returns:
        For each image the proposals followed by the ground truth, with the fields of the proposals.
    """
    if len(gt) != len(proposals):
        raise _ProposalError(f"got ground truth of {len(gt)} images but proposals of {len(proposals)}")
    return [add_ground_truth_to_proposals_single_image(g, p) for g, p in zip(gt, proposals, strict=True)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """Append ground truth to the proposals of one image, with a logit that says "certainly an object".

    Fields of the proposals other than `proposal_boxes` and `objectness_logits` must exist in `gt` too.
    """
    fields = {} if isinstance(gt, Boxes) else dict(gt.get_fields())
    gt_boxes = gt if isinstance(gt, Boxes) else gt.gt_boxes
    logits = proposals.objectness_logits
    fields["proposal_boxes"] = gt_boxes
    fields["objectness_logits"] = torch.full((len(gt_boxes),), _GROUND_TRUTH_LOGIT, device=logits.device)
    missing = [name for name in proposals.get_fields() if name not in fields]
    if missing:
        raise _ProposalError(
            f"proposals have fields {missing} that the ground truth lacks (it has {sorted(fields)}), so the two cannot "
            "be joined"
        )
    appended = Instances(proposals.image_size, **{name: fields[name] for name in proposals.get_fields()})
    return Instances.cat([proposals, appended])
