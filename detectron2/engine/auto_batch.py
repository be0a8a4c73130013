"""Find how many images a GPU can be trained on at once: `detectron2 train --auto-batch`.

Steps are tried with batches of the largest images that the config allows, with many objects, as no batch of the data
should take more memory.
"""

import gc
import itertools
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data.build import num_label_map_classes
from detectron2.engine.defaults import DefaultTrainer
from detectron2.engine.model_preparation import prepare_model
from detectron2.engine.options import TrainOptions
from detectron2.engine.random_states import random_states_kept
from detectron2.engine.train_loop import AMPTrainer, SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

__all__ = ["largest_batch", "largest_inputs", "set_largest_batch"]

logger = logging.getLogger(__name__)

_OBJECTS = 130  # in each image; more than the foreground that heads are trained on, so that all of it is there
_MOST_IMAGES = 1024
_SHARE_OF_MEMORY = 0.9  # the rest is for what is in pieces, and for other programs
_STEPS = 2  # the optimizer takes its memory in the first one


def set_largest_batch(cfg: CfgNode, scale_lr: bool = False, trainer: type[DefaultTrainer] = DefaultTrainer) -> str:
    """Set `SOLVER.IMS_PER_BATCH` to the largest batch that fits into the memory of the GPUs, at most 90 % of it.

    All processes must call it. With `SOLVER.ACCUMULATION_STEPS`, it is the batch of one of these steps.

    Args:
        cfg: a YAML config, changed in place.
        scale_lr: multiply `SOLVER.BASE_LR` by the ratio of the batches (linear rule, Goyal et al. 2017). The number of
            iterations stays.
        trainer: builds the optimizer.

    Returns:
        A sentence about what was chosen.

    Raises:
        ValueError: the model is not on a GPU, the config is of another kind, or not one image fits.
    """
    if not isinstance(cfg, CfgNode):
        raise ValueError(
            "--auto-batch needs a YAML config, in which the size of images is known. For a LazyConfig set "
            "dataloader.train.total_batch_size."
        )
    if torch.device(cfg.MODEL.DEVICE).type != "cuda":
        raise ValueError(
            "--auto-batch finds the largest batch that fits into the memory of a GPU, but MODEL.DEVICE is "
            f"{cfg.MODEL.DEVICE!r}. Without a GPU, set SOLVER.IMS_PER_BATCH."
        )
    with random_states_kept():
        fitting = _images_that_fit(cfg, trainer)
    processes = comm.get_world_size()
    fitting = min(comm.all_gather(fitting))
    if fitting == 0:
        height, width = _largest_size_hw(cfg)
        raise ValueError(
            f"Not one image of {height} x {width} pixels fits into the memory of the GPU for training. Lower "
            "INPUT.MAX_SIZE_TRAIN and MIN_SIZE_TRAIN, set SOLVER.AMP.ENABLED, or choose a smaller model."
        )
    solver = cfg.SOLVER
    was_frozen, before, rate = cfg.is_frozen(), solver.IMS_PER_BATCH, solver.BASE_LR
    cfg.defrost()
    solver.IMS_PER_BATCH = fitting * processes
    if solver.REFERENCE_WORLD_SIZE:
        solver.REFERENCE_WORLD_SIZE = processes  # the batch is not scaled once more
    if scale_lr:
        solver.BASE_LR = rate * solver.IMS_PER_BATCH / before
    if was_frozen:
        cfg.freeze()
    chosen = f"{solver.IMS_PER_BATCH} in place of {before}, {fitting} on each GPU"
    text = f"SOLVER.IMS_PER_BATCH is {chosen}, the most that fit."
    if scale_lr:
        return f"{text} SOLVER.BASE_LR is {solver.BASE_LR:g} in place of {rate:g}."
    return f"{text} SOLVER.BASE_LR stays {rate:g}; --scale-lr would change it with the batch."


def largest_batch(fits: Callable[[int], bool], most: int = _MOST_IMAGES) -> int:
    """Find the largest number for which `fits` is true, to within an eighth; 0 if there is none.

    Args:
        fits: whether a number is small enough; asked for 1, 2, 4 and so on, and then in between.
        most: the largest number that is asked for.

    Returns:
        The largest number that was found to fit.

    Example:
        >>> from detectron2.engine.auto_batch import largest_batch
        >>> largest_batch(lambda images: images <= 11)
        11
    """
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most + 1)
    while bad - good > max(1, good // 8):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def largest_inputs(cfg: CfgNode) -> dict[str, Any]:
    """An input of the largest size that the config allows, with all that its model may learn from.

    Args:
        cfg: a YAML config.

    Returns:
        An element of a batch as models take it.
    """
    height, width = _largest_size_hw(cfg)
    generator = np.random.default_rng(0)
    corner = generator.random((_OBJECTS, 2)) * [0.5 * width, 0.5 * height]
    boxes = np.concatenate([corner, np.add(corner, [0.4 * width, 0.4 * height])], axis=1)
    target = Instances((height, width), gt_boxes=Boxes(torch.as_tensor(boxes, dtype=torch.float32)))
    target.gt_classes = torch.zeros(_OBJECTS, dtype=torch.int64)
    if cfg.MODEL.MASK_ON or "MASK_FORMER" in cfg.MODEL:
        polygons = PolygonMasks([[box[[0, 1, 2, 1, 2, 3, 0, 3]]] for box in boxes])
        is_bitmask = cfg.INPUT.MASK_FORMAT == "bitmask" or "MASK_FORMER" in cfg.MODEL
        target.gt_masks = BitMasks.from_polygon_masks(polygons, height, width) if is_bitmask else polygons
    if cfg.MODEL.KEYPOINT_ON:
        points = torch.full((_OBJECTS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS, 3), 2.0)
        points[:, :, :2] = target.gt_boxes.get_centers()[:, None]
        target.gt_keypoints = Keypoints(points)
    channels = len(cfg.MODEL.PIXEL_MEAN)
    inputs: dict[str, Any] = {"image": torch.zeros(channels, height, width, dtype=torch.uint8), "instances": target}
    if num_label_map_classes(cfg) is not None:
        inputs["sem_seg"] = torch.zeros(height, width, dtype=torch.int64)
    return {**inputs, "height": height, "width": width}


def _largest_size_hw(cfg: CfgNode) -> tuple[int, int]:
    if "lsj" in cfg.INPUT.get("DATASET_MAPPER_NAME", ""):  # Mask2Former's crops of one size
        return cfg.INPUT.IMAGE_SIZE, cfg.INPUT.IMAGE_SIZE
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    shorter = max(sizes) if isinstance(sizes, (list, tuple)) else sizes
    longer = cfg.INPUT.MAX_SIZE_TRAIN
    # With 0 images keep their size: then that of most photographs of a telephone, scaled down.
    return (min(shorter, longer), longer) if shorter else (min(1080, longer), min(1920, longer))


def _images_that_fit(cfg: CfgNode, trainer: type[DefaultTrainer]) -> int:
    """How many images a step can have in this process; 0 if not even the model fits."""
    options = TrainOptions.from_cfg(cfg)
    inputs = largest_inputs(cfg)
    try:
        model = prepare_model(build_model(cfg), options)
        optimizer = trainer.build_optimizer(cfg, model)
        with torch.no_grad():  # random weights may lead to numbers that are not finite
            for parameter in model.parameters():
                parameter.zero_()
        for group in optimizer.param_groups:
            group["lr"] = 0.0

        def fits(images: int) -> bool:
            is_enough = _try_steps(cfg, model, optimizer, [inputs] * images)
            logger.info("A batch of %d images %s.", images, "fits" if is_enough else "does not fit")
            return is_enough

        return largest_batch(fits)
    except torch.OutOfMemoryError:
        return 0
    finally:
        model = optimizer = None
        _free_memory()


def _try_steps(cfg: CfgNode, model: Any, optimizer: Any, batch: list[dict[str, Any]]) -> bool:
    """Train on a batch; return whether memory was enough, with the reserve."""
    kind = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
    precision: Any = {"precision": TrainOptions.from_cfg(cfg).precision} if cfg.SOLVER.AMP.ENABLED else {}
    _free_memory()
    try:
        trainer = kind(model, itertools.repeat(batch), optimizer, **precision)
        with EventStorage() as trainer.storage:
            for _ in range(_STEPS):
                trainer.run_step()
    except torch.OutOfMemoryError:
        return False
    except (KeyError, ValueError) as error:
        name, why = cfg.MODEL.META_ARCHITECTURE, error.args[0] if error.args else error
        raise ValueError(
            f"--auto-batch cannot make what {name} learns from ({why}). Set SOLVER.IMS_PER_BATCH instead."
        ) from error
    finally:
        optimizer.zero_grad()
    return _share_of_memory() <= _SHARE_OF_MEMORY


def _free_memory() -> None:
    gc.collect()  # the frames of an error hold tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _share_of_memory() -> float:
    """The most that was taken since `_free_memory`, as a share of all memory of the GPU."""
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
