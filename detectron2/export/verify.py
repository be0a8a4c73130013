"""Run a written artifact beside the model it was made of, and tell how far their results are apart.

`N` images, `D` detections of an image, `M` side of a mask; boxes are `(x1, y1, x2, y2)` in continuous pixels of the
model's input.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import nn

from detectron2.data.datasets.synthetic import generate_shapes_dataset
from detectron2.export.artifact import batch_of
from detectron2.export.runtime.images import load_image, preprocess
from detectron2.export.runtime.predict import Predictor
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.hf_detector import HFDetector
from detectron2.modeling.meta_arch.hf_segmenter import HFSegmenter
from detectron2.modeling.meta_arch.panoptic_fpn import PanopticFPN
from detectron2.modeling.meta_arch.rcnn import GeneralizedRCNN, ProposalNetwork
from detectron2.modeling.meta_arch.semantic_seg import SemanticSegmentor
from detectron2.modeling.postprocessing import paste_predicted_masks
from detectron2.structures import Instances, ROIMasks

__all__ = [
    "BOUNDS",
    "Bounds",
    "Case",
    "Comparison",
    "VerificationError",
    "bounds_of",
    "compare_images",
    "compare_with_predictor",
    "eager_results",
    "make_cases",
    "otherwise_rounded",
    "score_threshold",
    "split_outputs",
    "table_of",
    "verify",
]

Result = dict[str, torch.Tensor]
"""What was found in one image, by the names of the outputs of an exported model, without empty rows."""

Reference = Callable[[Sequence[torch.Tensor], float | None], list[Result]]
"""Takes images and a score threshold; returns the results of a model."""

_ABOVE_ALL = 1.01  # a threshold that no score reaches
_ROUNDINGS = 8  # times that a model is run with other weights, where one of two near-ties has an even chance each time
_ROUNDING = 2.0**-21  # relative change of a weight: four units in the last place of float32
_QUERIES = ("class_scores", "mask_logits", "padded_sizes")
_MAPS = ("sem_seg", "center", "offset")
_OF_IMAGES = (*_MAPS, *_QUERIES)


class VerificationError(ValueError):
    """An exported model does not do what its model does."""


@dataclass(frozen=True)
class Bounds:
    """How far an exported model may be from its model.

    Args:
        boxes: pixels of the model's input.
        scores: also how close two scores are for one detection to take the place of another.
        masks: probabilities; of pasted masks the share of pixels that differ may be a tenth of it.
        maps: semantic scores, heat maps of keypoints and centres.
        chosen_points: share of the pixels of an image's masks and maps that may be off by more. Models that refine the
            least certain points may refine another one of two that are equally uncertain.
        decisions: share of the scores of an image that may belong to detections without a partner. Where numbers have
            few digits, more of them are nearly equal, and another proposal or detection is kept. How much that costs is
            told in average precision.
    """

    boxes: float = 1e-2
    scores: float = 1e-4
    masks: float = 1e-3
    maps: float = 1e-3
    chosen_points: float = 0.0
    decisions: float = 0.0


BOUNDS: Mapping[str, Bounds] = {
    "fp32": Bounds(),
    "fp16": Bounds(0.5, scores=1e-2, masks=2e-2, maps=5e-2, decisions=0.1),
}
"""Bounds by precision. How far int8 may go is told in average precision."""
_CHOSEN_POINTS = 2e-3


def bounds_of(model: nn.Module, precision: str) -> Bounds:
    """Return the bounds of a precision for a model, which may refine chosen points as PointRend does."""
    names = ("mask_point_subdivision_steps", "subdivision_steps")
    refines = any(getattr(module, name, 0) for module in model.modules() for name in names)
    return replace(BOUNDS[precision], chosen_points=_CHOSEN_POINTS if refines else 0.0)


@dataclass(frozen=True)
class Case:
    """Inputs to compare on.

    Args:
        name: what is special about them.
        images: N times `Tensor[3, h, w]`, values 0 to 255.
        threshold: of the score; None for models without one.
    """

    name: str
    images: list[torch.Tensor]
    threshold: float | None = None


@dataclass
class Comparison:
    """How far two results of a case are apart.

    Args:
        case: its name.
        shape: of the batch, as text.
        expected: detections of the model.
        found: detections of the artifact.
        differences: the largest of each kind: "boxes", "scores", "masks", "maps".
        swapped: detections in whose place another one of an equal score came, others within `Bounds.decisions`, and
            others that the model loses and finds itself when it rounds otherwise.
        faults: what is over the bounds, in words; none if all is well.
    """

    case: str
    shape: str = ""
    expected: int = 0
    found: int = 0
    differences: dict[str, float] = field(default_factory=dict)
    swapped: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, kind: str, values: torch.Tensor) -> float:
        """Take in differences of a kind, and return the largest of them; NaN is as far as can be."""
        largest = float(torch.nan_to_num(values.abs().float(), nan=torch.inf).amax()) if values.numel() else 0.0
        self.differences[kind] = max(self.differences.get(kind, 0.0), largest)
        return largest


def make_cases(
    size_hw: tuple[int, int],
    *,
    folder: Path,
    dynamic: Sequence[str] = ("batch", "size"),
    batch: int = 2,
    channels: str = "BGR",
    threshold: float | None = None,
    limit: int = 0,
) -> list[Case]:
    """Draw images, and make of them the cases that exported models are known to fail on.

    Args:
        size_hw: height and width of the batch that the model was exported with.
        folder: gets the images.
        dynamic: which sizes the artifact leaves open. Where the height and width are fixed, other sizes are those of
            images in the same frame.
        batch: N of the export, the only one unless the batch is dynamic.
        channels: the order of the model.
        threshold: of the score; None for models without one.
        limit: the largest side that the model takes; 0 for no limit.

    Returns:
        The cases: the sample, another size, other numbers of images, several sizes in one batch, an image without
        anything, and a threshold that nothing reaches.
    """
    h, w = size_hw
    largest = [limit or 10 * max(h, w)] * 2 if "size" in dynamic else [h, w]
    n = batch if "batch" not in dynamic else 2
    grown = (max(33, round(0.8 * h)), round(1.15 * w) + 3) if "size" in dynamic else (max(32, h - 13), max(32, w - 7))
    other = (min(grown[0], largest[0]), min(grown[1], largest[1]))
    small = (max(32, round(0.6 * h)), max(32, round(0.7 * w)))
    draw = _Pictures(folder, channels)
    cases = [Case("sample", draw(size_hw, n), threshold), Case("another size", draw(other, n), threshold)]
    if "batch" in dynamic:
        cases += [Case("one image", draw(size_hw, 1), threshold), Case("three images", draw(size_hw, 3), threshold)]
    if n > 1 or "batch" in dynamic:
        mixed = [draw(s, 1)[0] for s in (size_hw, small, other)[:3]]
        cases.append(Case("mixed sizes", (mixed * n)[: 3 if "batch" in dynamic else n], threshold))
    # Of one colour, all places of an image would have the same score, and the choice among them would be free.
    noise = 4 * torch.rand(3, *size_hw, generator=torch.Generator().manual_seed(0))
    cases.append(Case("blank image", [noise.round()] * (1 if "batch" in dynamic else n), threshold))
    if threshold is not None:
        cases.append(Case("no detections", draw(size_hw, n), _ABOVE_ALL))
    return cases


class _Pictures:
    """Draws images of shapes, always other ones."""

    def __init__(self, folder: Path, channels: str):
        self._folder, self._channels, self._calls = folder, channels, 0

    def __call__(self, size_hw: tuple[int, int], count: int) -> list[torch.Tensor]:
        self._calls += 1
        folder = self._folder / str(self._calls)
        generate_shapes_dataset(folder, count, size_hw=size_hw, seed=self._calls)
        images = []
        for path in sorted((folder / "images").iterdir()):
            pixels = np.array(Image.open(path))[:, :, :: -1 if self._channels == "BGR" else 1]
            images.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float())
        return images


@contextlib.contextmanager
def score_threshold(model: nn.Module, value: float | None, limit: int | None = None) -> Iterator[None]:
    """Give a model another score threshold and limit of detections for the duration of a `with` block.

    Args:
        model: in all its modules.
        value: the threshold; None for the model's own.
        limit: most detections of an image; None for the model's own.
    """
    wanted = {"test_score_thresh": value, "test_topk_per_image": limit, "max_detections_per_image": limit}
    holders = [(m, name) for m in model.modules() for name, x in wanted.items() if x is not None and hasattr(m, name)]
    before = [getattr(module, name) for module, name in holders]
    try:
        for module, name in holders:
            setattr(module, name, wanted[name])
        yield
    finally:
        for (module, name), old in zip(holders, before, strict=True):
            setattr(module, name, old)


def otherwise_rounded(model: nn.Module) -> Iterator[nn.Module]:
    """Make copies of a model that round otherwise: each of their weights differs by a few units in the last place.

    Where two scores at a limit are equal within rounding, such as those of the last proposal and the next, the copies
    decide for the one or the other, as runtimes do.

    Args:
        model: stays as it is.

    Yields:
        Copies in evaluation mode, always the same ones.

    Example:
        >>> from detectron2.export.verify import otherwise_rounded
        >>> other = next(otherwise_rounded(torch.nn.Conv2d(3, 4, 1)))
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(_ROUNDINGS):
        other = copy.deepcopy(model).eval()
        with torch.no_grad():
            for weight in (x for x in other.parameters() if x.is_floating_point()):
                weight *= 1 + _ROUNDING * (2 * torch.rand(weight.shape, generator=generator) - 1)
        yield other


def eager_results(
    model: Any, images: Sequence[torch.Tensor], threshold: float | None = None, masks: str = "raw"
) -> list[Result] | None:
    """Run a model of this library as it is.

    Args:
        model: in evaluation mode.
        images: N times `Tensor[3, h, w]`.
        threshold: of the score; None for the model's own.
        masks: "raw" or "pasted".

    Returns:
        The result of each image; None for a meta-architecture that is not one of the library's.
    """
    inputs = [{"image": image} for image in images]
    with torch.no_grad(), score_threshold(model, threshold):
        if isinstance(model, PanopticFPN):
            detections, scores = model.inference(inputs, do_postprocess=False)
            found = [_of_instances(each, masks) for each in detections]
            return [{**result, "sem_seg": each} for result, each in zip(found, scores, strict=True)]
        if isinstance(model, (GeneralizedRCNN, HFDetector)):
            return [_of_instances(x, masks) for x in model.inference(inputs, do_postprocess=False)]
        batch = model.preprocess_image(inputs) if hasattr(model, "preprocess_image") else None
        if isinstance(model, HFSegmenter):
            queries: Any = model.inference(inputs, do_postprocess=False)
            return _of_queries(queries[0], queries[1], batch)
        if batch is None or not hasattr(model, "backbone"):
            return None
        features = model.backbone(batch.tensor)
        if isinstance(model, DenseDetector):
            maps = [features[name] for name in model.head_in_features]
            found = model.forward_inference(batch, maps, model.head(maps))
            return [_of_instances(each, masks) for each in found]
        if isinstance(model, ProposalNetwork):
            return [_of_instances(each, masks) for each in model.proposal_generator(batch, features, None)[0]]
        if isinstance(model, SemanticSegmentor):
            return [{"sem_seg": each} for each in model.sem_seg_head(features, None)[0]]
        if hasattr(model, "sem_seg_head") and hasattr(model, "ins_embed_head"):  # Panoptic-DeepLab lies in a project
            scores = model.sem_seg_head(features)[0]
            centers, offsets = model.ins_embed_head(features)[:2]
            parts = zip(scores, centers, offsets, strict=True)
            return [{"sem_seg": s, "center": c, "offset": o} for s, c, o in parts]
        if hasattr(model, "sem_seg_head") and hasattr(model, "semantic_inference"):  # and so does Mask2Former
            found = model.sem_seg_head(features)
            return _of_queries(found["pred_logits"].softmax(-1), found["pred_masks"], batch)
    return None


def _of_queries(scores: torch.Tensor, masks: torch.Tensor, batch: Any) -> list[Result]:
    size = torch.tensor(batch.tensor.shape[-2:])
    return [{"class_scores": s, "mask_logits": m, "padded_sizes": size} for s, m in zip(scores, masks, strict=True)]


def _of_instances(found: Instances, masks: str) -> Result:
    if found.has("proposal_boxes"):
        return {"boxes": found.proposal_boxes.tensor, "scores": found.objectness_logits}
    result: Result = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "classes": found.pred_classes}
    if found.has("pred_masks"):
        result["masks"] = found.pred_masks[:, 0]
        if masks == "pasted":
            roi = Instances(found.image_size, pred_boxes=found.pred_boxes, pred_masks=ROIMasks(found.pred_masks[:, 0]))
            result["masks"] = paste_predicted_masks(roi).pred_masks
    if found.has("pred_keypoint_heatmaps"):
        result["keypoint_heatmaps"] = found.pred_keypoint_heatmaps
    return result


def split_outputs(outputs: Mapping[str, torch.Tensor], count: int) -> list[Result]:
    """Take the outputs of an exported model apart into those of N images, without empty rows."""
    results: list[Result] = []
    for i in range(count):
        if "image_index" in outputs:
            rows = outputs["image_index"] == i
            result = {k: v[rows] for k, v in outputs.items() if k not in (*_OF_IMAGES, "image_index")}
        elif "count" in outputs:
            n = int(outputs["count"][i])
            result = {k: v[i, :n] for k, v in outputs.items() if k not in (*_OF_IMAGES, "count")}
        else:
            result = {}
        results.append({**result, **{k: outputs[k][i] for k in _OF_IMAGES if k in outputs}})
    return results


def verify(
    run: Callable[[tuple[torch.Tensor, ...]], Mapping[str, torch.Tensor]],
    reference: Reference,
    cases: Sequence[Case],
    bounds: Bounds,
    *,
    size_hw: tuple[int, int] | None = None,
    limit: int | None = None,
    roundings: Callable[[], Iterator[Reference]] | None = None,
) -> list[Comparison]:
    """Compare a function of the inputs of an exported model with its model, case by case.

    Args:
        run: returns outputs by name.
        reference: takes images and a score threshold; returns the results of the model.
        cases: what to compare on.
        bounds: what is over them goes into the faults.
        size_hw: height and width of the batch where they are fixed.
        limit: the most detections of an image; None for no limit.
        roundings: gives references that round otherwise. They are asked where detections are over the bounds.

    Returns:
        How far they are apart in each case. An artifact that cannot be run is a fault of its case.
    """
    comparisons = []
    for case in cases:
        frame = [torch.zeros(3, *size_hw)] if size_hw is not None else []  # the model pads to the largest of a batch
        asked = ([*case.images, *frame], case.threshold)
        expected = reference(*asked)
        batch, sizes = batch_of(case.images, size_hw)
        inputs = (batch, sizes) if case.threshold is None else (batch, sizes, torch.tensor(float(case.threshold)))
        comparison = Comparison(case.name, " x ".join(map(str, (batch.shape[0], *batch.shape[2:]))))
        comparisons.append(comparison)
        try:
            outputs = run(inputs)
        except Exception as error:  # whatever a runtime raises
            message = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            comparison.faults.append(f"{type(error).__name__} in the runtime: {message[:300]}")
            continue
        found = split_outputs(outputs, len(case.images))
        others = functools.cache(lambda asked=asked: [each(*asked) for each in roundings()] if roundings else [])
        for i, (have, size) in enumerate(zip(found, sizes.tolist(), strict=True)):
            rounded = functools.partial(lambda others, i: [each[i] for each in others()], others, i)
            compare_images(expected[i], have, comparison, bounds, size, case.threshold, limit, rounded)
    return comparisons


def compare_images(
    want: Result,
    have: Result,
    comparison: Comparison,
    bounds: Bounds,
    size_hw: Sequence[int],
    threshold: float | None = None,
    limit: int | None = None,
    rounded: Callable[[], Sequence[Result]] | None = None,
) -> None:
    """Compare the results of an image, and write down how far they are apart.

    Detections belong together that have a class and a box in common. One may be missing if another with the same score
    took its place, or if it is as good as the threshold or as the last that an image can have.

    What is over the bounds then is compared with the results `rounded` of the model when it rounds otherwise. A
    detection may be missing that one of them lacks too, and one may be new that one of them has, if the model's own
    result has nothing like it, where there are not more or fewer detections than in any of those results.
    """
    if rounded is not None and "boxes" in want and "boxes" in have:
        trial = Comparison(comparison.case)
        compare_images(want, have, trial, bounds, size_hw, threshold, limit)
        if trial.faults:
            lost, new = _explained(want, have, rounded, bounds)
            comparison.expected += int(lost.sum())
            comparison.found += int(new.sum())
            comparison.swapped += int(lost.sum()) + int(new.sum())
            limit = limit if limit is None else limit - int(new.sum())
            want = {k: v if k in _OF_IMAGES else v[~lost] for k, v in want.items()}
            have = {k: v if k in _OF_IMAGES else v[~new] for k, v in have.items()}
    faults = comparison.faults
    missing = sorted(set(want) ^ set(have))
    if missing:
        faults.append(f"only one of the two has {', '.join(missing)}")
        return
    for name in (n for n in _OF_IMAGES if n in want):
        if want[name].shape != have[name].shape:
            faults.append(f"{name} has shape {tuple(have[name].shape)}, not {tuple(want[name].shape)}")
            return
    if "class_scores" in want:
        _compare_queries(want, have, comparison, bounds)
    for name in (n for n in _MAPS if n in want):
        h, w = size_hw
        difference = have[name][:, :h, :w] - want[name][:, :h, :w]
        _check(comparison, "maps", difference, bounds.maps, name, bounds.chosen_points)
    if "boxes" not in want:
        return
    comparison.expected += len(want["boxes"])
    comparison.found += len(have["boxes"])
    pairs, lost, new = _match(want, have, bounds)
    if bounds.decisions:
        alike = _alike(want, have, bounds)
        far = [(i, j) for i, j in pairs if not alike[i, j]]
        pairs = [pair for pair in pairs if pair not in far]
        lost, new = [*lost, *(i for i, _ in far)], [*new, *(j for _, j in far)]
    _excuse(comparison, want, have, lost, new, bounds, threshold, limit)
    i, j = (torch.tensor(side, dtype=torch.long) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
    _check(comparison, "boxes", have["boxes"][j] - want["boxes"][i], bounds.boxes, "boxes")
    scale = want["scores"][i].abs().clamp(min=1)  # scores of proposals are logits
    _check(comparison, "scores", (have["scores"][j] - want["scores"][i]) / scale, bounds.scores, "scores")
    if "keypoint_heatmaps" in want:
        heatmaps = have["keypoint_heatmaps"][j] - want["keypoint_heatmaps"][i]
        _check(comparison, "maps", heatmaps, bounds.maps, "heat maps of keypoints")
    if "masks" in want:
        _check_masks(comparison, want["masks"][i], have["masks"][j], bounds)


def _compare_queries(want: Result, have: Result, comparison: Comparison, bounds: Bounds) -> None:
    """Compare classes and masks of queries, which have the same order in both."""
    if want["padded_sizes"].tolist() != have["padded_sizes"].tolist():
        sizes = " x ".join(map(str, want["padded_sizes"].tolist()))
        comparison.faults.append(f"padded_sizes are {have['padded_sizes'].tolist()}, and the model pads to {sizes}")
    scores, masks = have["class_scores"] - want["class_scores"], have["mask_logits"].sigmoid()
    _check(comparison, "scores", scores, bounds.scores, "classes of queries")
    _check(comparison, "masks", masks - want["mask_logits"].sigmoid(), bounds.masks, "masks of queries")


def _check_masks(comparison: Comparison, want: torch.Tensor, have: torch.Tensor, bounds: Bounds) -> None:
    if want.dtype != torch.bool:
        _check(comparison, "masks", have - want, bounds.masks, "masks", bounds.chosen_points)
        return
    have = have[:, : want.shape[1], : want.shape[2]].bool()
    share = (have != want).float().mean(dim=(1, 2)) if want.numel() else torch.zeros(0)
    _check(comparison, "masks", share, bounds.masks / 10, "share of differing pixels in masks")


def _check(
    comparison: Comparison, kind: str, difference: torch.Tensor, bound: float, name: str, excused: float = 0.0
) -> None:
    """Note the largest difference, and a fault if more than a share of all differences is over the bound."""
    largest = comparison.add(kind, difference)
    if excused and bool((~(difference.abs() <= bound)).float().mean() <= excused):
        return
    if not largest <= bound:
        comparison.faults.append(f"{name} differ by {largest:.3g}, more than {bound:g}")


def compare_with_predictor(
    folder: Path, model: nn.Module, mapper: Any, picture: Path, bounds: Bounds, threshold: float | None = None
) -> Comparison:
    """Compare the program beside an artifact, from the file of an image to arrays in its frame, with the model.

    Args:
        folder: of the export.
        model: in evaluation mode.
        mapper: turns `{"file_name": path}` into the input of the model.
        picture: an image file.
        bounds: what is over them goes into the faults.
        threshold: of the score; None for models without one.

    Returns:
        How far they are apart, in pixels of the image.
    """
    comparison = Comparison("predict.py")
    sample = mapper({"file_name": str(picture)})
    with Image.open(picture) as image:
        size = {"height": image.height, "width": image.width}
    comparison.shape = f"1 x {size['height']} x {size['width']}"
    try:
        predictor = Predictor(folder)
        found = predictor(str(picture), threshold)
    except Exception as error:  # whatever a runtime raises
        comparison.faults.append(f"{type(error).__name__} in predict.py: {str(error)[:300]}")
        return comparison
    room = predictor.meta["size"]
    if room is not None and any(side > limit for side, limit in zip(sample["image"].shape[1:], room, strict=True)):
        # The program makes such images fit, and the model is to see the same pixels.
        pixels, sizes = preprocess(load_image(str(picture)), predictor.meta)
        sample["image"] = torch.from_numpy(pixels[0, :, : sizes[0, 0], : sizes[0, 1]].copy())
    # The model pads to the largest of a batch, and what is around an image may count.
    frame = [{"image": torch.zeros(len(sample["image"]), *room)}] if room is not None else []

    def output_of(model: nn.Module) -> dict[str, Any]:
        with torch.no_grad(), score_threshold(model, threshold):
            output = model([{**sample, **size}, *frame])[0]
        if predictor.meta["task"] == "mask_classification" and "instances" in output:
            best = output["instances"]  # a threshold and a limit that are not the model's belong to the program
            best = best[best.scores > predictor.meta["score_threshold"]][: predictor.meta["max_detections"]]
            output = {**output, "instances": best}
        return output

    output = output_of(model)
    rounded = functools.cache(lambda: [_of_output(output_of(other)) for other in otherwise_rounded(model)])
    want, have = _of_output(output), {k: torch.from_numpy(np.array(v)) for k, v in found.items() if k != "segments"}
    labels = {name: (want.pop(name, None), have.pop(name, None)) for name in ("sem_seg", "panoptic")}
    if "panoptic_seg" in output and "instances" not in output:  # asked not to make them of segments
        have = {}
    for name in [n for n in have if n not in want]:  # keypoints are peaks of maps that have been compared
        del have[name]
    if "boxes" in want:
        original_hw = (size["height"], size["width"])
        compare_images(want, have, comparison, bounds, original_hw, threshold, rounded=rounded)
    for name, (of_model, of_program) in labels.items():
        if of_model is None or of_program is None:
            continue
        share = (of_model != of_program).float().mean()
        if share > bounds.masks and comparison.swapped:  # segments of other detections
            share = min(share, *((other[name] != of_program).float().mean() for other in rounded()))
        _check(comparison, "masks", share, bounds.masks, f"share of pixels with another label in {name}")
    return comparison


def _of_output(output: Mapping[str, Any]) -> Result:
    """Return the output of a model for an image in the form of `predict.py`, but for keypoints."""
    result: Result = {}
    if "proposals" in output:
        result = {"boxes": output["proposals"].proposal_boxes.tensor, "scores": output["proposals"].objectness_logits}
    if "instances" in output:
        found = output["instances"]
        result = {"scores": found.scores, "classes": found.pred_classes}
        if found.has("pred_masks"):
            result["masks"] = getattr(found.pred_masks, "tensor", found.pred_masks)
        boxes = found.pred_boxes
        result["boxes"] = boxes.tensor
    if "sem_seg" in output:
        result["sem_seg"] = output["sem_seg"].argmax(dim=0)
    if "panoptic_seg" in output:
        result["panoptic"] = output["panoptic_seg"][0]
    return result


def _match(want: Result, have: Result, bounds: Bounds) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Pair detections of the same class, the nearest boxes first; return also the rows without a partner.

    Boxes further apart than a pixel, or a hundred times the bound, are different objects.
    """
    classes_w, classes_h = (r.get("classes", torch.zeros(len(r["boxes"]))) for r in (want, have))
    distance = (want["boxes"][:, None].double() - have["boxes"][None].double()).abs().amax(dim=2)
    distance = torch.nan_to_num(distance, nan=torch.inf)
    distance[classes_w[:, None] != classes_h[None]] = torch.inf
    far = max(100 * bounds.boxes, 1.0)
    # Of boxes at the same place those with the nearest scores belong together.
    cost = distance + 1e-3 * (want["scores"][:, None].double() - have["scores"][None].double()).abs()
    pairs, free_w, free_h = [], set(range(len(classes_w))), set(range(len(classes_h)))
    for flat in cost.flatten().argsort(stable=True).tolist():
        i, j = divmod(flat, len(classes_h))
        if distance[i, j] > far:
            break
        if i in free_w and j in free_h:
            pairs.append((i, j))
            free_w.discard(i)
            free_h.discard(j)
    return pairs, sorted(free_w), sorted(free_h)


def _alike(first: Result, second: Result, bounds: Bounds) -> torch.Tensor:
    """Which detections have the same class, and boxes and scores within the bounds: bool `Tensor[D1, D2]`."""
    boxes = (first["boxes"][:, None] - second["boxes"]).abs().amax(dim=2) <= bounds.boxes
    scores = first["scores"][:, None]
    alike = boxes & ((scores - second["scores"]).abs() <= bounds.scores * scores.abs().clamp(min=1))
    return alike & (first["classes"][:, None] == second["classes"]) if "classes" in first else alike


def _explained(
    want: Result, have: Result, rounded: Callable[[], Sequence[Result]], bounds: Bounds
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which detections of the model are lost, and which are new, as in results of the model with other rounding."""
    alike = _alike(want, have, bounds)
    lost, new = ~alike.any(dim=1), ~alike.any(dim=0)
    may_be_lost, may_be_new = torch.zeros_like(lost), torch.zeros_like(new)
    counts = [len(alike)]
    for other in rounded() if lost.any() or new.any() else ():
        alike = _alike(want, other, bounds)
        may_be_lost |= ~alike.any(dim=1)
        may_be_new |= (_alike(other, have, bounds) & ~alike.any(dim=0)[:, None]).any(dim=0)
        counts.append(alike.shape[1])
    is_as_many = min(counts) <= len(new) <= max(counts)
    return lost & may_be_lost & is_as_many, new & may_be_new & is_as_many


def _excuse(
    comparison: Comparison,
    want: Result,
    have: Result,
    lost: list[int],
    new: list[int],
    bounds: Bounds,
    threshold: float | None,
    limit: int | None,
) -> None:
    """Count detections without a partner that a score next to another one explains; others are faults.

    Where another one of an equal score is found instead, equal scores have to be seen in the image, too; without that
    one detection may be exchanged, or one in fifty. All detections at wrong places would be excused otherwise.
    """
    scores_w, scores_h = want["scores"].tolist(), have["scores"].tolist()
    edges = [threshold] if threshold is not None else []

    def is_near(a: float, b: float) -> bool:
        return abs(a - b) <= bounds.scores * max(1.0, abs(a))

    faults: list[str] = []
    exchanged: list[str] = []
    weight = 0.0
    sides = (("is missing", lost, scores_w, new, scores_h), ("was not expected", new, scores_h, lost, scores_w))
    for what, rows, scores, others, other_scores in sides:
        for row in rows:
            # A full list would have had room for it in the place of its last.
            last = [min(other_scores)] if limit is not None and len(other_scores) >= limit else []
            is_exchanged = any(is_near(scores[row], other_scores[o]) for o in others)
            is_tied = any(is_near(scores[row], s) for i, s in enumerate(scores) if i != row)
            if any(is_near(scores[row], s) for s in [*edges, *last]) or (is_exchanged and is_tied):
                comparison.swapped += 1
                continue
            source = want if what == "is missing" else have
            label = f"of class {int(source['classes'][row])} " if "classes" in source else ""
            box = ", ".join(f"{v:.1f}" for v in source["boxes"][row].tolist())
            fault = f"a detection {label}with score {scores[row]:.4f} at ({box}) {what}"
            (exchanged if is_exchanged else faults).append(fault)
            weight += min(max(scores[row], 0.0), 1.0)
    is_little = weight <= bounds.decisions * float(want["scores"].clamp(0, 1).sum())
    for group, is_excused in ((faults, False), (exchanged, len(exchanged) <= 2 * max(1, len(scores_w) // 50))):
        if is_excused or (bounds.decisions and is_little):
            comparison.swapped += len(group)
        else:
            comparison.faults += group


def table_of(comparisons: Sequence[Comparison]) -> str:
    """Format comparisons for people, one line each, and the first faults below."""
    kinds = [k for k in ("boxes", "scores", "masks", "maps") if any(k in c.differences for c in comparisons)]
    has_detections = any("boxes" in c.differences for c in comparisons)
    headers = ["case", "input", *(["detections", "swapped"] if has_detections else [])]
    headers += [{"boxes": "boxes (px)"}.get(k, k) for k in kinds] + [""]
    rows = []
    for c in comparisons:
        count = str(c.expected) if c.expected == c.found else f"{c.expected} -> {c.found}"
        numbers = [f"{c.differences[k]:.1e}" if k in c.differences else "-" for k in kinds]
        found = [count, c.swapped] if "boxes" in c.differences else ["-", "-"]
        rows.append([c.case, c.shape, *(found if has_detections else []), *numbers])
        rows[-1].append("fails" if c.faults else "ok")
    lines = [tabulate(rows, headers, disable_numparse=True)]
    for c in (c for c in comparisons if c.faults):
        more = f" (and {len(c.faults) - 1} more)" if len(c.faults) > 1 else ""
        lines.append(f"{c.case}: {c.faults[0]}{more}")
    return "\n".join(lines)
