"""The two steps that no exporter records as they are needed, as operators of ours with several forms.

Non-maximum suppression gets a result of fixed shape, and the best of many scores are found in a defined order.

Letters: `B` sets of boxes, `C` lists of scores for each set (classes), `R` boxes of a set, `M` scores, `k` of them that
are wanted.
"""

from collections.abc import Callable
from typing import Any

import torch
from torchvision.ops import nms

__all__ = ["first_k", "first_k_aten", "nms_keep", "nms_keep_torchvision", "onnx_translations"]


@torch.library.custom_op("detectron2::nms_keep", mutates_args=())
def nms_keep(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Say which boxes stay; each of the `B * C` lists of scores is suppressed by itself.

    Args:
        boxes: `Tensor[B, R, 4]`, finite.
        scores: `Tensor[B, C, R]`; a score of minus infinity marks a box that takes no part.
        iou_threshold: a box goes when its IoU with a better one that stays is greater than this.

    Returns:
        bool `Tensor[B, C, R]`.

    Example:
        >>> from detectron2.export.graphs.operators import nms_keep
        >>> boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]]])
        >>> nms_keep(boxes, torch.tensor([[[0.9, 0.8, -torch.inf]]]), 0.5)
        tensor([[[ True, False, False]]])
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)
    exact, ranks = boxes.double(), scores.double()
    for b, c in (scores.amax(dim=2) > -torch.inf).nonzero().tolist():
        rows = (scores[b, c] > -torch.inf).nonzero()[:, 0]
        keep[b, c, rows[nms(exact[b, rows], ranks[b, c, rows], iou_threshold)]] = True
    return keep


@nms_keep.register_fake
def _(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def nms_keep_torchvision(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Do the work of `nms_keep` by one call of `torchvision::nms`.

    The lists are moved apart, so that their boxes do not overlap, in double precision, as in
    `detectron2.layers.batched_nms`.
    """
    num_lists, num_boxes = scores.shape[1], scores.shape[2]
    flat = scores.flatten()
    candidates = (flat > -torch.inf).nonzero()[:, 0]
    lists, rows = candidates // num_boxes, candidates % num_boxes
    exact = boxes.double()
    low, high = exact.aminmax()
    apart = exact.flatten(0, 1)[lists // num_lists * num_boxes + rows] + (lists * (high - low + 1))[:, None]
    # Exporters take it that two boxes stay, at least. Here are two, far from each other and from all others.
    two = torch.arange(2, device=scores.device)
    corners = low - 4 + 2 * two
    apart = torch.cat((apart, torch.stack((corners, corners, corners + 1, corners + 1), dim=1)))
    candidates = torch.cat((candidates, flat.shape[0] + two))
    ranks = torch.cat((flat, flat.new_zeros(2)))[candidates].double()
    kept = candidates[nms(apart, ranks, iou_threshold)]
    keep = torch.zeros(flat.shape[0] + 2, dtype=torch.int64, device=scores.device)
    keep = keep.scatter(0, kept, torch.ones_like(kept))
    return keep[: flat.shape[0]].view_as(scores) > 0


def first_k_aten(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the work of `first_k` by operators of PyTorch: `topk` of numbers of which no two are equal.

    In double precision there is room for 2**27 numbers between neighbours of single precision. There each score is
    lowered by its place; infinite ones become finite ones beyond single precision.
    """
    exact = scores.double().clamp(-1e300, 1e300)
    places = torch.arange(scores.shape[-1], device=scores.device, dtype=exact.dtype)
    lowered = exact * (1 - exact.sign() * places * 2.0**-52)
    keys = torch.where(exact == 0, -places * 1e-300, lowered)
    index = keys.topk(k, dim=-1).indices
    return scores.gather(-1, index), index


@torch.library.custom_op("detectron2::first_k", mutates_args=())
def first_k(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` highest scores in descending order; of equal ones the first, where `torch.topk` takes any.

    Args:
        scores: float32 `Tensor[..., M]`, `M >= k`.
        k: how many.

    Returns:
        Scores and int64 indices, both `Tensor[..., k]`.

    Example:
        >>> from detectron2.export.graphs.operators import first_k
        >>> first_k(torch.tensor([0.5, 1.0, 0.5, 1.0]), 3)
        (tensor([1.0000, 1.0000, 0.5000]), tensor([1, 3, 0]))
    """
    return first_k_aten(scores, k)


@first_k.register_fake
def _(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (*scores.shape[:-1], k)
    return scores.new_empty(shape), scores.new_empty(shape, dtype=torch.int64)


def onnx_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """How the operators of this package are written in ONNX, for `torch.onnx.export(custom_translation_table=...)`.

    Returns:
        For each operator the function that writes it, of opset 18.

    Raises:
        ImportError: onnxscript is not installed.
    """
    try:
        from onnxscript import opset18
    except ImportError as error:
        raise ImportError('ONNX files are written with onnxscript: pip install "detectron2[onnx]"') from error

    op: Any = opset18
    lowest = torch.finfo(torch.float32).min

    def nms_keep_onnx(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        # Scores at or below the threshold take no part, and minus infinity lies below every number.
        kept = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[2**31 - 1]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[lowest]),
        )
        nothing = op.Expand(op.Constant(value_int=0), op.Shape(scores))
        ones = op.Expand(op.Constant(value_int=1), op.Shape(kept, start=0, end=1))
        return op.Cast(op.ScatterND(nothing, kept, ones), to=9)  # 9 is bool

    def first_k_onnx(scores: Any, k: int) -> Any:
        return op.TopK(scores, op.Constant(value_ints=[k]))  # of equal ones the first, says its definition

    return {
        torch.ops.detectron2.nms_keep.default: nms_keep_onnx,
        torch.ops.detectron2.first_k.default: first_k_onnx,
    }
