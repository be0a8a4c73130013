"""Try the evaluators of a training before its first iteration.

What is wrong with an evaluation (an id map, a missing file, an evaluator that does not fit the data set or the model)
would otherwise show after the first period of training. A trial builds loader and evaluator, shows them two images
with the predictions of the model and with made-up objects of every class, and computes the metrics. It leaves no trace
in the model, the random numbers, the metadata or the output folder.
"""

import contextlib
import copy
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

import detectron2.utils.comm as comm
from detectron2.config import CfgNode, instantiate
from detectron2.data import Metadata, MetadataCatalog
from detectron2.engine.hooks.validation_loss import undisturbed
from detectron2.engine.random_states import random_states_kept
from detectron2.engine.sharding import is_sharded
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.evaluation.evaluator import lean_masks
from detectron2.structures import Boxes, Instances, RotatedBoxes
from detectron2.utils.events import EventStorage
from detectron2.utils.wrappers import unwrap_model

__all__ = ["try_evaluators", "try_lazy_evaluator"]

logger = logging.getLogger(__name__)

_IMAGES = 2


def try_evaluators(trainer: Any, *, is_certain: bool) -> None:
    """Try what `DefaultTrainer.test` will use, for every data set of `DATASETS.TEST`.

    A `ValueError` says that an evaluation would fail, why, and how to train without trying. If `is_certain` is False,
    evaluation may use other loaders and evaluators, and nothing that fails ends training.
    """
    cfg: CfgNode = trainer.cfg.clone()
    cfg.defrost()
    with _scratch_folder(cfg.DATASETS.TEST) as folder:
        cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = folder, 0  # for two images
        cfg.freeze()
        for name in cfg.DATASETS.TEST:
            cure = "TEST.TRY_EVALUATOR False; to train without evaluation: DATASETS.TEST '()'"
            _Trial(name, trainer.model, cure, is_certain).run(
                lambda name=name: trainer.build_test_loader(cfg, name),
                lambda name=name: trainer.build_evaluator(cfg, name),
            )


def try_lazy_evaluator(cfg: DictConfig, model: nn.Module, names: list[str]) -> None:
    """Try `dataloader.evaluator` of a LazyConfig, if there is one, on `dataloader.test`; see `try_evaluators`.

    `names` are the data sets that are evaluated, as far as they are known.
    """
    if "evaluator" not in cfg.dataloader or "test" not in cfg.dataloader:
        return
    with _scratch_folder(names) as folder:
        cfg = copy.deepcopy(cfg)
        cfg.train.output_dir = folder
        if OmegaConf.is_dict(cfg.dataloader.test) and "num_workers" in cfg.dataloader.test:
            cfg.dataloader.test.num_workers = 0
        _redirect_output(cfg.dataloader.evaluator, folder)
        _Trial(", ".join(names) or "dataloader.test", model, "train.try_evaluator=False").run(
            lambda: instantiate(cfg.dataloader.test), lambda: instantiate(cfg.dataloader.evaluator)
        )


def _redirect_output(node: Any, folder: str) -> None:
    """Replace the `output_dir` of an evaluator, or of several, in place."""
    if OmegaConf.is_list(node):
        for child in node:
            _redirect_output(child, folder)
    elif OmegaConf.is_dict(node):
        for key in node:
            if key == "output_dir" and node[key] is not None:
                node[key] = folder
            elif key != "_target_":
                _redirect_output(node[key], folder)


@contextlib.contextmanager
def _scratch_folder(names: Iterable[str]) -> Iterator[str]:
    """Make a folder for all processes of a machine; afterwards it and metadata that point into it are gone."""
    folder = tempfile.mkdtemp(prefix="evaluator_trial_") if comm.is_main_process() else ""
    folder = comm.all_gather(folder)[0]
    try:
        os.makedirs(folder, exist_ok=True)  # on other machines
        yield folder
        comm.synchronize()  # no process writes any more; when one failed, all have, and each cleans up
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for values in [vars(MetadataCatalog.get(name)) for name in names if name in MetadataCatalog.list()]:
            for key in [key for key, value in values.items() if isinstance(value, str) and value.startswith(folder)]:
                del values[key]  # such as the file of a converted data set


class _WouldFailError(Exception):
    """What a trial found; `ends_training` where it is beyond doubt."""

    def __init__(self, text: str, ends_training: bool) -> None:
        super().__init__(text)
        self.ends_training = ends_training


class _Trial:
    """The trial of one evaluator; every process takes part."""

    def __init__(self, name: str, model: nn.Module, switch: str, is_certain: bool = True) -> None:
        self._name = name
        self._model = unwrap_model(model)  # a wrapper would talk to the other processes, or change buffers
        self._switch = switch
        self._is_certain = is_certain
        self._evaluator_name = "the evaluator"

    def run(self, build_loader: Callable[[], Iterable], build_evaluator: Callable[[], Any]) -> None:
        """Try the evaluator, and log the outcome."""
        start = time.perf_counter()
        try:
            with random_states_kept(), undisturbed(self._model), _quiet(), _eager(), torch.no_grad():
                images = self._try(build_loader, build_evaluator)
        except NotImplementedError as e:
            reason = str(e) or "not implemented"
            self._log(logging.WARNING, f"No evaluator for {self._name} ({reason}); it will not be evaluated.")
        except _WouldFailError as e:
            if e.ends_training:
                raise ValueError(str(e)) from e.__cause__
            self._log(logging.WARNING, str(e))
        else:
            seconds = time.perf_counter() - start
            what = f"The evaluator of {self._name} ({self._evaluator_name})"
            self._log(logging.INFO, f"{what} was tried on {images} images in {seconds:.1f} s.")
            self._compare_numbers_of_classes()

    @staticmethod
    def _log(level: int, text: str) -> None:
        if comm.is_main_process():
            logger.log(level, text)

    def _try(self, build_loader: Callable[[], Iterable], build_evaluator: Callable[[], Any]) -> int:
        """Build, predict, process and evaluate; return the number of images in all processes."""
        evaluator = self._in_all_processes("cannot be built", build_evaluator)
        if isinstance(evaluator, list | tuple):
            evaluator = DatasetEvaluators(evaluator)
        if evaluator is None:
            return 0
        self._evaluator_name = ", ".join(type(member).__name__ for member in _members(evaluator))
        batches = self._in_all_processes("has no data", lambda: _first_images(build_loader(), _IMAGES))
        counts = comm.all_gather(len(batches))
        if is_sharded(self._model):  # it gathers its weights in every pass, of which all processes must make as many
            batches = batches[: min(counts)]
        self._model.eval()
        # As in inference_on_dataset(); what the model records is dropped.
        with lean_masks(self._model, evaluator), EventStorage():
            outputs = self._in_all_processes(
                "has no predictions: the model fails", lambda: [self._model(inputs) for inputs in batches]
            )

        pairs = list(zip(batches, outputs, strict=True))

        def process() -> None:
            evaluator.reset()
            for inputs, output in pairs[:-1]:
                evaluator.process(inputs, self._adapted(output, is_last=False))

        def process_last() -> None:
            for inputs, output in pairs[-1:]:
                evaluator.process(inputs, self._adapted(output, is_last=True))

        self._in_all_processes("fails", process)
        # Other evaluators may take no made-up predictions, and their metrics may need all images.
        self._in_all_processes("fails", process_last, _is_ours(evaluator, "process"))
        evaluate = getattr(evaluator, "evaluate_part", evaluator.evaluate)
        self._in_all_processes("fails", evaluate, _is_ours(evaluator, "evaluate"))
        return sum(counts)

    def _in_all_processes(self, phase: str, function: Callable[[], Any], ends_training: bool = True) -> Any:
        """Call a function in every process; when it fails in one, all of them stop."""
        result, error, failure = None, None, None
        try:
            result = function()
        except Exception as e:  # the message names any error, and its cause
            error = e
            if isinstance(e, NotImplementedError) and phase == "cannot be built":
                failure = "", False
            else:
                text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
                failure = f"{type(e).__name__}: {text}", ends_training or isinstance(e, ImportError | FileNotFoundError)
        failure = next((x for x in comm.all_gather(failure) if x is not None), None)
        if failure is None:
            return result
        text, ends_training = failure
        if not text:
            raise NotImplementedError(*(error.args if error else ())) from None
        ends_training = ends_training and self._is_certain
        verdict = "Evaluation would fail" if ends_training else "Evaluation may fail"
        raise _WouldFailError(
            f"{verdict}: {self._evaluator_name} of the data set {self._name} {phase}. {text}\n"
            f"It was tried on two images before training, so that this is known now. To train without trying: "
            f"{self._switch}.",
            ends_training,
        ) from error

    def _adapted(self, outputs: Any, is_last: bool) -> Any:
        """Change outputs in the documented form to what a trained model may give; the last get made-up objects."""
        if not isinstance(outputs, list):
            return outputs
        adapt = self._with_made_up_objects if is_last else self._without_foreign_classes
        return [adapt(output) if isinstance(output, dict) else output for output in outputs]

    def _without_foreign_classes(self, output: dict[str, Any]) -> dict[str, Any]:
        """Drop classes that the data set does not have; an untrained model may find them, a trained one will not."""
        found, known = output.get("instances"), self._classes()
        if not isinstance(found, Instances) or not found.has("pred_classes"):
            return output
        is_known = torch.isin(found.pred_classes, torch.tensor(known).to(found.pred_classes))
        return {**output, "instances": found[is_known]}

    def _with_made_up_objects(self, output: dict[str, Any]) -> dict[str, Any]:
        found, panoptic = output.get("instances"), output.get("panoptic_seg")
        if isinstance(found, Instances):
            made = made_up_instances(found, self._classes())
            output = self._without_foreign_classes(output) if made is None else {**output, "instances": made}
        if isinstance(panoptic, tuple) and len(panoptic) == 2 and panoptic[1] is not None:
            made = made_up_panoptic(panoptic[0], self._labels("thing"), self._labels("stuff"))
            output = {**output, "panoptic_seg": made}
        return output

    @property
    def _metadata(self) -> Metadata:
        return MetadataCatalog.get(self._name) if self._name in MetadataCatalog.list() else Metadata()

    def _labels(self, kind: str) -> list[int]:
        return sorted((self._metadata.get(f"{kind}_dataset_id_to_contiguous_id") or {}).values())

    def _classes(self) -> list[int]:
        """Return the labels that both the model and the data set have."""
        known = self._labels("thing") or list(range(len(self._metadata.get("thing_classes") or ())))
        count = number_of_classes(self._model)
        if not known:
            return list(range(count or 1))
        return [label for label in known if count is None or label < count] or known[:1]

    def _compare_numbers_of_classes(self) -> None:
        """Warn of classes that the model has and the data set does not: the first such prediction is an error."""
        in_model, names = number_of_classes(self._model), self._metadata.get("thing_classes")
        if names and in_model is not None and in_model > len(names):
            self._log(
                logging.WARNING,
                f"The model has {in_model} classes and {self._name} {len(names)}: a prediction of any other class "
                "would end the evaluation. Set the model's number of classes (MODEL.ROI_HEADS.NUM_CLASSES, "
                f"MODEL.RETINANET.NUM_CLASSES) to {len(names)}.",
            )


def _first_images(loader: Iterable, count: int) -> list[Any]:
    """Return the first batches of a loader, up to a number of images; a list of images becomes a batch of each."""
    batches: list[Any] = []
    for batch in loader:
        batches += [[image] for image in batch] if isinstance(batch, list) else [batch]
        if len(batches) >= count:
            break
    if not batches and comm.get_world_size() == 1:
        raise ValueError("The loader of the test data gives no image.")
    return batches[:count]


def _members(evaluator: Any) -> list[Any]:
    if isinstance(evaluator, DatasetEvaluators):
        return [leaf for member in evaluator._evaluators for leaf in _members(member)]
    return [evaluator]


def _is_ours(evaluator: Any, method: str) -> bool:
    """Whether a method of every member of an evaluator is one of this library."""
    kinds = [type(member) for member in _members(evaluator)]
    if not all(issubclass(kind, DatasetEvaluator) for kind in kinds):
        return False
    return all(getattr(kind, method).__module__.startswith("detectron2.") for kind in kinds)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log errors only: two images without detections are not worth a warning."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


def _eager() -> contextlib.AbstractContextManager:
    """Run compiled models as they are: to compile them for evaluation takes minutes, before training has begun."""
    is_loaded = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if is_loaded else contextlib.nullcontext()


# More made-up objects would not try more, and each may have a mask of the size of the image.
_MOST_OBJECTS = 100
_MOST_MASK_PIXELS = 50_000_000


def number_of_classes(model: nn.Module) -> int | None:
    """Return how many classes of objects a model tells apart, where it says so."""
    for part in (getattr(model, "roi_heads", None), model):
        count = getattr(part, "num_classes", None)
        if isinstance(count, int):
            return count
    return None


def made_up_instances(template: Instances, classes: Sequence[int]) -> Instances | None:
    """Make objects with the fields that the objects of a model, often none, have; None if one is of an unknown kind.

    Every object is the same box in the middle of the image, of another class. Of very many classes, some are taken that
    are evenly spread, the first and the last among them.
    """
    height, width = template.image_size
    most = min(_MOST_OBJECTS, max(1, _MOST_MASK_PIXELS // max(1, height * width)))
    if len(classes) > most:
        classes = [classes[round(k)] for k in np.linspace(0, len(classes) - 1, most)]
    count = len(classes)
    y1, x1 = height // 4, width // 4
    y2, x2 = y1 + max(1, height // 2), x1 + max(1, width // 2)
    made = Instances(template.image_size)
    for name, value in template.get_fields().items():
        tensor = value if isinstance(value, torch.Tensor) else getattr(value, "tensor", None)
        if name == "pred_classes":
            made.set(name, torch.tensor(classes, dtype=value.dtype, device=value.device))
        elif name == "scores":
            made.set(name, torch.linspace(1.0, 0.5, count, device=value.device).to(value.dtype))
        elif isinstance(value, RotatedBoxes):
            box = value.tensor.new_tensor([[width / 2, height / 2, width / 2, height / 2, 0.0]])
            made.set(name, RotatedBoxes(box.repeat(count, 1)))
        elif isinstance(value, Boxes):
            made.set(name, Boxes(value.tensor.new_tensor([[x1, y1, x2, y2]]).repeat(count, 1)))
        elif name == "pred_masks_rle":
            made.set(name, [_run_lengths((height, width), slice(y1, y2), slice(x1, x2)) for _ in classes])
        elif isinstance(tensor, torch.Tensor) and type(value).__module__.startswith(("torch", "detectron2.")):
            field = tensor.new_zeros((count, *tensor.shape[1:]))
            if tensor.shape[1:] == (height, width):  # masks of whole images
                field[:, y1:y2, x1:x2] = 1
            elif name == "pred_masks":  # masks of boxes
                field.fill_(1)
            is_plain = isinstance(value, torch.Tensor)
            made.set(name, field if is_plain else type(value)(field))  # pyright: ignore[reportCallIssue]
        else:
            return None
    return made


def _run_lengths(size_hw: tuple[int, int], rows: slice, columns: slice) -> dict[str, Any]:
    """Return compressed COCO run lengths of a box."""
    import pycocotools.mask as mask_util

    mask = np.zeros(size_hw, dtype=np.uint8, order="F")
    mask[rows, columns] = 1
    return mask_util.encode(mask)  # type: ignore[return-value]


def made_up_panoptic(ids: torch.Tensor, things: Sequence[int], stuff: Sequence[int]) -> tuple[torch.Tensor, list]:
    """Divide an image into columns, for the first and the last class of things, and the last class of stuff.

    In some data sets the first stuff class stands for all things and is not a class of its own. The result is a map of
    the size and type of `ids` (H, W), and its segments in the documented form.
    """
    labels = [(True, label) for label in sorted({*things[:1], *things[-1:]})] + [(False, x) for x in stuff[-1:]]
    made = torch.zeros_like(ids)
    segments: list[Mapping[str, Any]] = []
    width = ids.shape[-1]
    for number, (is_thing, label) in enumerate(labels, start=1):
        columns = slice((number - 1) * width // len(labels), number * width // len(labels))
        made[:, columns] = number
        area = made[:, columns].numel()
        segment: dict[str, Any] = {"id": number, "isthing": is_thing, "category_id": label, "area": area}
        segments.append({**segment, "score": 1.0, "instance_id": number} if is_thing else segment)
    return made, segments
