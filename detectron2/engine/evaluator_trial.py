"""Try the evaluators of a training before its first iteration.

What is wrong with an evaluation (an id map, a file that is missing, an evaluator that does not fit the data set or the
model, a package that is not installed) would otherwise show after the first period of training, or at its end.

A trial builds the loader and the evaluator, shows them two images with what the model, trained or not, gives for them,
and with made-up objects of every class, and computes the metrics. It leaves no trace: generators of random numbers,
the model and its modes are as they were, and what is written goes to a temporary folder that is deleted.
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

    Args:
        trainer: has `cfg`, `model`, `build_test_loader` and `build_evaluator`.
        is_certain: whether evaluation is known to use these two; if not, nothing that fails ends training.

    Raises:
        ValueError: an evaluation would fail; the message says which, why, and how to train without trying.
    """
    with _scratch_folder() as folder:
        cfg: CfgNode = trainer.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
        cfg.DATALOADER.NUM_WORKERS = 0  # for two images
        cfg.freeze()
        for name in cfg.DATASETS.TEST:
            trial = _Trial(name, trainer.model, "TEST.TRY_EVALUATOR False", is_certain)
            with _metadata_kept(name, folder):
                trial.run(
                    lambda name=name: trainer.build_test_loader(cfg, name),
                    lambda name=name: trainer.build_evaluator(cfg, name),
                )


def try_lazy_evaluator(cfg: DictConfig, model: nn.Module, names: list[str]) -> None:
    """Try the evaluator of a LazyConfig.

    Args:
        cfg: reads `dataloader.test` and `dataloader.evaluator`, if there is one.
        model: the model in training.
        names: the data sets that are evaluated, as far as they are known.

    Raises:
        ValueError: an evaluation would fail; the message says which, why, and how to train without trying.
    """
    if "evaluator" not in cfg.dataloader or "test" not in cfg.dataloader:
        return
    with _scratch_folder() as folder, contextlib.ExitStack() as stack:
        cfg = copy.deepcopy(cfg)
        cfg.train.output_dir = folder
        if OmegaConf.is_dict(cfg.dataloader.test) and "num_workers" in cfg.dataloader.test:
            cfg.dataloader.test.num_workers = 0
        _redirect_output(cfg.dataloader.evaluator, folder)
        for name in names:
            stack.enter_context(_metadata_kept(name, folder))
        trial = _Trial(", ".join(names) or "dataloader.test", model, "train.try_evaluator=False")
        trial.run(lambda: instantiate(cfg.dataloader.test), lambda: instantiate(cfg.dataloader.evaluator))


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


class _Trial:
    """The trial of one evaluator; every process takes part."""

    def __init__(self, name: str, model: nn.Module, switch: str, is_certain: bool = True) -> None:
        self._name = name
        self._model = unwrap_model(model)  # a wrapper would talk to the other processes, or change buffers
        self._switch = switch
        self._is_certain = is_certain
        self._evaluator_name = "the evaluator"
        self._phase = ""  # of the trial, for messages

    def run(self, build_loader: Callable[[], Iterable], build_evaluator: Callable[[], Any]) -> None:
        """Do it, and say so in one line of the log."""
        start = time.perf_counter()
        try:
            with random_states_kept(), _modes_kept(self._model), _quiet(), _eager(), torch.no_grad():
                images = self._try(build_loader, build_evaluator)
        except NotImplementedError as e:
            reason = str(e) or "not implemented"
            self._say(logging.WARNING, f"No evaluator for {self._name} ({reason}); it will not be evaluated.")
        except _WouldFailError as e:
            if e.ends_training:
                raise ValueError(str(e)) from e.__cause__
            self._say(logging.WARNING, str(e))
        else:
            seconds = time.perf_counter() - start
            what = f"The evaluator of {self._name} ({self._evaluator_name})"
            self._say(logging.INFO, f"{what} was tried on {images} images in {seconds:.1f} s.")
            self._compare_numbers_of_classes()

    @staticmethod
    def _say(level: int, text: str) -> None:
        if comm.is_main_process():
            logger.log(level, text)

    def _try(self, build_loader: Callable[[], Iterable], build_evaluator: Callable[[], Any]) -> int:
        self._phase = "cannot be built"
        try:
            evaluator = self._in_all_processes(build_evaluator)
        except _WouldFailError as e:
            if isinstance(e.__cause__, NotImplementedError):
                raise e.__cause__ from None
            raise
        if isinstance(evaluator, list | tuple):
            evaluator = DatasetEvaluators(evaluator)
        if evaluator is None:
            return 0
        self._evaluator_name = _name_of(evaluator)
        self._phase = "has no data"
        batches = self._in_all_processes(lambda: _first_images(build_loader(), _IMAGES))
        counts = comm.all_gather(len(batches))
        if is_sharded(self._model):  # it gathers its weights in every pass, of which all processes must make as many
            batches = batches[: min(counts)]
        self._in_all_processes(lambda: self._show(evaluator, batches))
        self._in_all_processes(
            getattr(evaluator, "evaluate_part", evaluator.evaluate),
            # Another's may need all images, or take no made-up predictions.
            ends_training=_is_ours(evaluator),
        )
        return sum(counts)

    def _show(self, evaluator: Any, batches: list[Any]) -> None:
        """Run the model on every image; the evaluator sees the first as it is, the last with made-up objects."""
        self._phase = "fails"
        evaluator.reset()
        self._model.eval()
        # as in inference_on_dataset(); and whatever a model writes down is forgotten
        with lean_masks(self._model, evaluator), EventStorage():
            for inputs in batches:
                self._phase = "has no predictions: the model fails"
                outputs = self._model(inputs)
                self._phase = "fails"
                evaluator.process(inputs, self._adapted(outputs, is_last=inputs is batches[-1]))

    def _in_all_processes(self, function: Callable[[], Any], ends_training: bool = True) -> Any:
        """Call a function in every process; when it fails in one, all of them stop."""
        result, error = None, None
        try:
            result = function()
        except Exception as e:  # whatever it is: it is said, with its cause
            error = e
        ends_training = self._is_certain and (ends_training or isinstance(error, ImportError | FileNotFoundError))
        failures = comm.all_gather(None if error is None else (_text(error), ends_training, self._phase))
        failure = next((x for x in failures if x is not None), None)
        if failure is None:
            return result
        text, ends_training, phase = failure
        verdict = "Evaluation would fail" if ends_training else "Evaluation may fail"
        raise _WouldFailError(
            f"{verdict}: {self._evaluator_name} of the data set {self._name} {phase}. {text}\n"
            f"It was tried on two images before training, so that this is known now. To train without trying: "
            f"{self._switch}.",
            ends_training,
        ) from error

    def _adapted(self, outputs: Any, is_last: bool) -> Any:
        """Outputs in the documented form with what can be expected of a trained model; others as they are."""
        if not isinstance(outputs, list):
            return outputs
        adapt = self._with_made_up_objects if is_last else self._without_foreign_classes
        return [adapt(output) if isinstance(output, dict) else output for output in outputs]

    def _without_foreign_classes(self, output: dict[str, Any]) -> dict[str, Any]:
        """An untrained model may find classes that the data set does not have, a trained one will not."""
        found, known = output.get("instances"), self._classes(self._metadata())
        if not isinstance(found, Instances) or not found.has("pred_classes"):
            return output
        is_known = torch.isin(found.pred_classes, torch.tensor(known).to(found.pred_classes))
        return {**output, "instances": found[is_known]}

    def _with_made_up_objects(self, output: dict[str, Any]) -> dict[str, Any]:
        """An untrained model finds few objects of few classes, or none."""
        metadata = self._metadata()
        output = dict(output)
        found = output.get("instances")
        if isinstance(found, Instances):
            output["instances"] = made_up_instances(found, self._classes(metadata))
        panoptic = output.get("panoptic_seg")
        if isinstance(panoptic, tuple) and len(panoptic) == 2 and panoptic[1] is not None:
            things = _labels(metadata, "thing_dataset_id_to_contiguous_id")
            stuff = _labels(metadata, "stuff_dataset_id_to_contiguous_id")
            output["panoptic_seg"] = made_up_panoptic(panoptic[0], things, stuff)
        return output

    def _metadata(self) -> Metadata:
        return MetadataCatalog.get(self._name) if self._name in MetadataCatalog.list() else Metadata()

    def _classes(self, metadata: Metadata) -> list[int]:
        """Labels that both the model and the data set have."""
        known = _labels(metadata, "thing_dataset_id_to_contiguous_id") or list(
            range(len(metadata.get("thing_classes") or ()))
        )
        count = number_of_classes(self._model)
        if not known:
            return list(range(count or 1))
        return [label for label in known if count is None or label < count] or known[:1]

    def _compare_numbers_of_classes(self) -> None:
        """Warn of classes that the model has and the data set does not: the first such prediction is an error."""
        in_model, names = number_of_classes(self._model), self._metadata().get("thing_classes")
        if names and in_model is not None and in_model > len(names):
            self._say(
                logging.WARNING,
                f"The model has {in_model} classes and {self._name} {len(names)}: a prediction of any other class "
                "would end the evaluation. Set the model's number of classes (MODEL.ROI_HEADS.NUM_CLASSES, "
                f"MODEL.RETINANET.NUM_CLASSES) to {len(names)}.",
            )


class _WouldFailError(Exception):
    """What a trial found; `ends_training` where it is beyond doubt."""

    def __init__(self, text: str, ends_training: bool) -> None:
        super().__init__(text)
        self.ends_training = ends_training


def _labels(metadata: Metadata, key: str) -> list[int]:
    return sorted((metadata.get(key) or {}).values())


def _first_images(loader: Iterable, count: int) -> list[Any]:
    """The first batches of a loader, up to a number of images, with as many batches where there are several images."""
    batches: list[Any] = []
    images = 0
    for batch in loader:
        rest = count - images
        if isinstance(batch, list):
            batches += [[image] for image in batch[:rest]]
        else:
            batches.append(batch)
        images += min(_length(batch), rest)
        if images >= count:
            break
    if not batches and comm.get_world_size() == 1:
        raise ValueError("The loader of the test data gives no image.")
    return batches


def _length(batch: Any) -> int:
    return len(batch) if isinstance(batch, list) else 1


def _members(evaluator: Any) -> list[Any]:
    if isinstance(evaluator, DatasetEvaluators):
        return [leaf for member in evaluator._evaluators for leaf in _members(member)]
    return [evaluator]


def _name_of(evaluator: Any) -> str:
    return ", ".join(type(member).__name__ for member in _members(evaluator))


def _is_ours(evaluator: Any) -> bool:
    """Whether all evaluators compute their metrics as those that come with the library."""
    return all(
        isinstance(e, DatasetEvaluator) and type(e).evaluate.__module__.startswith("detectron2.")
        for e in _members(evaluator)
    )


def _text(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    """A folder for all processes of a machine, which is gone afterwards."""
    folder = tempfile.mkdtemp(prefix="evaluator_trial_") if comm.is_main_process() else ""
    folder = comm.all_gather(folder)[0]
    try:
        os.makedirs(folder, exist_ok=True)  # on other machines
        yield folder
        comm.synchronize()  # no process writes any more; when one failed, all have, and each cleans up
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _metadata_kept(name: str, folder: str) -> Iterator[None]:
    """Afterwards the metadata of a data set names no file in the folder, such as a converted data set."""
    try:
        yield
    finally:
        values = vars(MetadataCatalog.get(name)) if name in MetadataCatalog.list() else {}
        for key in [key for key, value in values.items() if isinstance(value, str) and value.startswith(folder)]:
            del values[key]


@contextlib.contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    """Every module is in training or evaluation mode as before, also those that differ from the model as a whole."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Log errors only: two images without detections are not worth a warning."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Compiled models are not compiled for evaluation, which takes minutes, before training has begun."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


# ---------------------------------------------------------------------------------------------------------------------
# Made-up predictions. `N` objects, `H` and `W` the size of the original image, `K` classes of the model.
# ---------------------------------------------------------------------------------------------------------------------

# More would not try more, and each may have a mask of the size of the image.
_MOST_OBJECTS = 100
_MOST_MASK_PIXELS = 50_000_000


def number_of_classes(model: nn.Module) -> int | None:
    """Return how many classes of objects a model tells apart, where it says so."""
    for part in (getattr(model, "roi_heads", None), model):
        count = getattr(part, "num_classes", None)
        if isinstance(count, int):
            return count
    return None


def made_up_instances(template: Instances, classes: Sequence[int]) -> Instances:
    """Make objects with the fields that a model's objects have.

    Every object is the same box in the middle of the image, of another class. Fields of unknown kinds are left out.

    Args:
        template: what the model found, often nothing.
        classes: labels; of very many, some that are evenly spread, the first and the last among them.

    Returns:
        the objects, on the device of the template.
    """
    height, width = template.image_size
    most = min(_MOST_OBJECTS, max(1, _MOST_MASK_PIXELS // max(1, height * width)))
    if len(classes) > most:
        classes = [classes[round(k)] for k in np.linspace(0, len(classes) - 1, most)]
    made = Instances(template.image_size)
    for name, value in template.get_fields().items():
        field = _field(name, value, classes, (height, width))
        if field is not None:
            made.set(name, field)
    return made


def _field(name: str, value: Any, classes: Sequence[int], size_hw: tuple[int, int]) -> Any:
    """One field of all objects, or None where it is of an unknown kind."""
    count = len(classes)
    if name == "pred_classes":
        return torch.tensor(classes, dtype=value.dtype, device=value.device)
    if name == "scores":
        return torch.linspace(1.0, 0.5, count, device=value.device).to(value.dtype)
    if isinstance(value, RotatedBoxes):
        height, width = size_hw
        box = torch.tensor([[width / 2, height / 2, width / 2, height / 2, 0.0]])
        return RotatedBoxes(box.to(value.tensor).repeat(count, 1))
    if isinstance(value, Boxes):
        return Boxes(_middle_xyxy(size_hw).to(value.tensor).repeat(count, 1))
    if isinstance(value, list):
        return [_run_lengths(size_hw) for _ in classes] if name == "pred_masks_rle" else None
    tensor = value if isinstance(value, torch.Tensor) else getattr(value, "tensor", None)
    if not isinstance(tensor, torch.Tensor):
        return None
    made = tensor.new_zeros((count, *tensor.shape[1:]))
    if tensor.shape[1:] == size_hw:  # masks of whole images
        y1, x1, y2, x2 = _middle_yxyx(size_hw)
        made[:, y1:y2, x1:x2] = 1
    elif name == "pred_masks":  # masks of boxes
        made.fill_(1)
    return made if isinstance(value, torch.Tensor) else type(value)(made)  # pyright: ignore[reportCallIssue]


def _middle_yxyx(size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    height, width = size_hw
    return height // 4, width // 4, height // 4 + max(1, height // 2), width // 4 + max(1, width // 2)


def _middle_xyxy(size_hw: tuple[int, int]) -> torch.Tensor:
    y1, x1, y2, x2 = _middle_yxyx(size_hw)
    return torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)


def _run_lengths(size_hw: tuple[int, int]) -> dict[str, Any]:
    """Compressed COCO run lengths of the box in the middle."""
    import pycocotools.mask as mask_util

    mask = np.zeros(size_hw, dtype=np.uint8, order="F")
    y1, x1, y2, x2 = _middle_yxyx(size_hw)
    mask[y1:y2, x1:x2] = 1
    return mask_util.encode(mask)  # type: ignore[return-value]


def made_up_panoptic(ids: torch.Tensor, things: Sequence[int], stuff: Sequence[int]) -> tuple[torch.Tensor, list]:
    """Divide an image into columns, for the first and the last class of things, and the last class of stuff.

    In some data sets the first stuff class stands for all things and is not a class of its own.

    Args:
        ids: the model's map (H, W), for its size and type.
        things: contiguous labels of things, in ascending order.
        stuff: contiguous labels of stuff, in ascending order.

    Returns:
        the map, and its segments in the documented form.
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
