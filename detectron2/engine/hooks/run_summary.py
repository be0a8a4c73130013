"""Log what a run is going to do before it begins, and how fast it is when that is known."""

import logging
import time
from collections.abc import Iterable
from typing import Any

import torch

import detectron2.utils.comm as comm
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine.train_loop import HookBase

__all__ = ["RunSummary", "explain_data", "explain_schedule"]

logger = logging.getLogger("detectron2.engine.summary")

# Above this share of a step, more workers shorten training; below it, the model is what takes the time.
_MUCH_WAITING = 0.2
_CLASSES_SHOWN = 10
# The rate with which R-CNN models are trained by SGD in the published configs: 0.02 for 16 images.
_USUAL_RATE_PER_IMAGE = 0.02 / 16


class RunSummary(HookBase):
    """Log a table before training and, after the first steps, the speed and what limits it.

    Only the main process logs. Register it after `IterationTimer`. `batch_size` is the number of images in one
    iteration over all processes, if it is known, and `notes` are further lines of the table, such as those of
    `explain_schedule`. By default the measured iterations end when the writers read what was recorded.
    """

    def __init__(
        self,
        batch_size: int | None = None,
        notes: dict[str, str] | None = None,
        warmup_iter: int = 10,
        measured_iter: int = 50,
    ) -> None:
        self._batch_size = batch_size
        self._notes = dict(notes or {})
        self._warmup_iter = warmup_iter
        self._measured_iter = measured_iter
        self._begin: float | None = None
        self._begin_iter = 0

    def before_train(self) -> None:
        """Log the table."""
        self._begin = None
        if comm.is_main_process():
            rows = self._rows()
            width = max(map(len, rows))
            logger.info("This run:\n%s", "\n".join(f"  {name:<{width}}  {text}" for name, text in rows.items()))

    def after_step(self) -> None:
        """Measure; when enough steps are done, log the speed."""
        done = self.trainer.iter - self.trainer.start_iter + 1
        if done == self._warmup_iter:
            self._begin, self._begin_iter = time.perf_counter(), self.trainer.iter
        is_last = self.trainer.iter + 1 == self.trainer.max_iter
        if self._begin is not None and (done == self._warmup_iter + self._measured_iter or is_last):
            self._log_speed(time.perf_counter() - self._begin, self.trainer.iter - self._begin_iter)
            self._begin = None

    def _rows(self) -> dict[str, str]:
        first, last = self.trainer.start_iter, self.trainer.max_iter
        rows = {"iterations": f"{first} to {last}" if first else str(last)}
        images = count_images(getattr(self.trainer, "data_loader", None))
        if images is not None:
            rows["images"] = str(images)
        inner: Any = getattr(self.trainer, "_trainer", self.trainer)  # which makes the steps of DefaultTrainer
        size, processes, accumulated = self._batch_size, comm.get_world_size(), getattr(inner, "accumulation_steps", 1)
        if size:
            rows["batch"] = f"{size} images"
            if processes > 1:
                rows["batch"] += f", {size / processes:g} in each of {processes} processes"
            if accumulated > 1:
                rows["batch"] += f", in {accumulated} parts one after the other"
        if size and images:
            rows["epochs"] = f"{last * size / images:.1f}, of {images / size:g} iterations each"
        optimizer = getattr(self.trainer, "optimizer", None)
        if isinstance(optimizer, torch.optim.Optimizer):
            rows["optimizer"] = _describe_optimizer(optimizer, "learning rate" in self._notes)
            rows["device"] = _describe_device(optimizer, getattr(inner, "precision", None))
        return {**rows, **self._notes}

    def _log_speed(self, seconds: float, steps: int) -> None:
        if steps < 1 or not comm.is_main_process():
            return
        histories = self.trainer.storage.histories()
        times, waiting = (
            [v for v, at in histories[name].values() if at > self._begin_iter] if name in histories else []
            for name in ("time", "data_time")
        )
        # The clock of the whole loop also counts evaluations and checkpoints that fell into these iterations.
        step = max(sum(times) / len(times) if times else seconds / steps, 1e-9)
        text = f"Speed after the warm-up: {1 / step:.2f} iterations per second ({step:.3f} s each)"
        if self._batch_size:
            text += f", {self._batch_size / step:.1f} images per second"
        if not waiting:
            logger.info("%s.", text)
            return
        share = min(sum(waiting) / len(waiting) / step, 1.0)
        logger.info("%s; %.0f %% of the time is spent waiting for data.", text, 100 * share)
        if share > _MUCH_WAITING:
            logger.warning(
                "Loading data is the bottleneck: %.0f %% of the time is spent waiting for it. Raise "
                "DATALOADER.NUM_WORKERS, make images smaller before training, or put them on a faster disk; "
                "tools/benchmark.py --task data_advanced shows which part is slow.",
                100 * share,
            )


def count_images(loader: Any) -> int | None:
    """Return how many images a loader draws from: the length of the outermost data set that has one."""
    inner = getattr(loader, "dataset", None)
    while inner is not None:  # loader, grouping, mapping, list
        if not isinstance(inner, torch.utils.data.DataLoader):  # whose length is in batches
            try:
                return len(inner)
            except (TypeError, NotImplementedError):
                pass
        inner = getattr(inner, "dataset", None)
    return None


def _describe_optimizer(optimizer: torch.optim.Optimizer, rate_is_known: bool) -> str:
    groups = optimizer.param_groups
    count = sum(p.numel() for group in groups for p in group["params"])
    rates: Iterable[float] = sorted({float(group.get("initial_lr", group["lr"])) for group in groups})
    lowest, *_, highest = [*rates, *rates]
    parts = [type(optimizer).__name__]
    if lowest != highest:
        parts.append(f"learning rates from {lowest:g} to {highest:g}")
    elif not rate_is_known:
        parts.append(f"learning rate {highest:g}")
    return ", ".join([*parts, f"{count / 1e6:.1f} million trainable parameters"])


def _describe_device(optimizer: torch.optim.Optimizer, precision: torch.dtype | None) -> str:
    parameter = next(p for group in optimizer.param_groups for p in group["params"])
    text = str(parameter.device)
    if parameter.device.type == "cuda":
        text = f"{torch.cuda.get_device_name(parameter.device)} ({text})"
    own = str(parameter.dtype).removeprefix("torch.")
    return f"{text}, {own}" if precision is None else f"{text}, {own} and {str(precision).removeprefix('torch.')}"


def explain_data(cfg: CfgNode) -> dict[str, str]:
    """Return lines for `RunSummary`: settings that cost quality, without any error, where another one is meant.

    Those about objects are left out where it is not known that the training data have any.
    """
    lines = {"channels": f"{cfg.INPUT.FORMAT or 'as in the files'} (INPUT.FORMAT)"}
    names = cfg.DATASETS.TRAIN[:1]
    metadata = vars(MetadataCatalog.get(names[0])) if names and names[0] in MetadataCatalog.list() else {}
    if classes := metadata.get("thing_classes"):  # no file is read for them
        shown = [f"{label} {name}" for label, name in enumerate(classes)]
        if len(shown) > _CLASSES_SHOWN:
            shown[_CLASSES_SHOWN - 1 : -1] = ["..."]
        lines["labels"] = ", ".join(shown)
        what = "left out" if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS else "used"
        lines["empty images"] = f"{what} (DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
        lines["detections"] = f"{cfg.TEST.DETECTIONS_PER_IMAGE} of an image at most (TEST.DETECTIONS_PER_IMAGE)"
    return lines


def explain_schedule(cfg: CfgNode, given: CfgNode | None = None) -> dict[str, str]:
    """Return lines for `RunSummary`: which learning rate a config leads to, and why.

    `given` is the config before `auto_scale_workers` changed it.
    """
    solver = cfg.SOLVER
    text = f"{solver.BASE_LR:g} (SOLVER.BASE_LR)"
    if given is not None and given.SOLVER.BASE_LR != solver.BASE_LR:
        before = given.SOLVER
        text = (
            f"{solver.BASE_LR:g}: SOLVER.BASE_LR {before.BASE_LR:g} is for {before.IMS_PER_BATCH} images on "
            f"{before.REFERENCE_WORLD_SIZE} processes, scaled to {solver.IMS_PER_BATCH} images"
        )
    lines = {"learning rate": text, "schedule": _describe_schedule(solver)}
    usual = _USUAL_RATE_PER_IMAGE * solver.IMS_PER_BATCH
    if solver.get("OPTIMIZER", "SGD").upper() == "SGD" and 2 * usual < solver.BASE_LR:
        lines["note"] = (
            f"with SGD, R-CNN models are usually trained with {usual:g} for {solver.IMS_PER_BATCH} images (linear "
            "scaling, arXiv:1706.02677); if the loss diverges, lower SOLVER.BASE_LR"
        )
    return lines


def _describe_schedule(solver: CfgNode) -> str:
    parts = []
    if solver.WARMUP_ITERS > 0:
        # A warm-up that is longer than the training is shortened to it.
        warmup = min(solver.WARMUP_ITERS, solver.MAX_ITER)
        word = "at" if solver.WARMUP_METHOD == "constant" else "from"
        parts.append(f"warm-up {word} {solver.BASE_LR * solver.WARMUP_FACTOR:g} for {warmup} iterations")
    # The steps, which the configs of the zoo set for any schedule, always count as read; the other keys where they are.
    steps = ", ".join(str(step) for step in solver.STEPS if step < solver.MAX_ITER)
    text: str = solver.LR_SCHEDULER_NAME
    if text == "WarmupMultiStepLR":
        text = f"times {solver.GAMMA:g} at {steps}" if steps else "constant"
    elif text == "WarmupCosineLR":
        text = f"half a cosine to {solver.BASE_LR_END:g}"
    elif text == "WarmupStepWithFixedGammaLR":
        text = f"{solver.NUM_DECAYS} times multiplied by {solver.GAMMA:g}"
    return ", then ".join([*parts, text])
