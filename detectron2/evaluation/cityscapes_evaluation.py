"""Cityscapes' own metrics (https://www.cityscapes-dataset.com/benchmarks/), computed by its package cityscapesscripts.

The package reads predictions from files, so every image's are written to a temporary folder that all processes share.
"""

import contextlib
import copy
import importlib
import io
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from detectron2.layers.mask_ops import paste_masks_in_boxes
from detectron2.layers.run_lengths import decode_part
from detectron2.structures import Instances, ROIMasks
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .evaluator import DatasetEvaluator, paired, warn_of_repeated, without_infinite
from .sem_seg_evaluation import predicted_labels

__all__ = ["CityscapesEvaluator", "CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator", "whole_masks"]

# What a model may predict, in the order of its labels; the metrics want the ids.
_IDS_OF_LABELS = [category["id"] for category in CITYSCAPES_CATEGORIES]
_ID_OF_NAME = {category["name"]: category["id"] for category in CITYSCAPES_CATEGORIES}


@contextlib.contextmanager
def _adapted_to_today(module: Any) -> Iterator[None]:
    """Have cityscapesscripts 2.3 find `numpy.in1d`, which NumPy 2.4 removed, and write no file to this folder."""
    with contextlib.ExitStack() as stack:
        if hasattr(module, "writeDict2JSON"):
            stack.callback(setattr, module, "writeDict2JSON", module.writeDict2JSON)
            module.writeDict2JSON = lambda *_: None
        if not hasattr(np, "in1d"):
            stack.callback(delattr, np, "in1d")
            setattr(np, "in1d", lambda a, b: np.isin(a, b).ravel())  # noqa: B010 (the type checker knows it is gone)
        yield


def _cityscapes_module(name: str) -> Any:
    """Import a module of cityscapesscripts, or say how to get it."""
    try:
        return importlib.import_module(f"cityscapesscripts.{name}" if name else "cityscapesscripts")
    except ImportError as e:
        raise ImportError(
            "Evaluation on Cityscapes needs cityscapesscripts: pip install 'detectron2[cityscapes]'"
        ) from e


class CityscapesEvaluator(DatasetEvaluator):
    """What the evaluators of Cityscapes share: the folder for predictions, and pairing these with the ground truth.

    All processes must call it, and they must see the same folder for temporary files: one machine only. The main
    process computes the metrics. Images are known by their file names, `<city>_<sequence>_<frame>_leftImg8bit.png`.

    Args:
        dataset_name: a data set with `gt_dir` in its metadata, a folder of ground truth like Cityscapes' gtFine/val.

    Example:
        >>> issubclass(CityscapesSemSegEvaluator, CityscapesEvaluator)  # which says what a model predicts
        True
    """

    _module_name = ""
    _truth_suffix = ""
    _prediction_suffix = ""

    def __init__(self, dataset_name: str):
        _cityscapes_module("")  # rather now than after the inference
        self._metadata = MetadataCatalog.get(dataset_name)
        if self._metadata.get("gt_dir") is None:
            raise ValueError(f"{type(self).__name__} needs `gt_dir` in the metadata of {dataset_name!r}.")
        self._cpu_device = torch.device("cpu")
        self._logger = logging.getLogger(__name__)
        self._working_dir: tempfile.TemporaryDirectory | None = None
        self._temp_dir = ""
        self._seen: list[str] = []
        self._leaves_out = False  # detections that are not finite

    def reset(self):
        """Forget the predictions, and begin a new folder."""
        self._clean_up()
        self._seen, self._leaves_out = [], False
        if comm.is_main_process():
            self._working_dir = tempfile.TemporaryDirectory(prefix="cityscapes_eval_")
        name = self._working_dir.name if self._working_dir is not None else ""
        self._temp_dir = comm.all_gather(name)[0]
        if not os.path.isdir(self._temp_dir):
            raise RuntimeError(
                f"{self._temp_dir} of the main process is not here: Cityscapes is evaluated on one machine only"
            )

    def _clean_up(self) -> None:
        if self._working_dir is not None:
            self._working_dir.cleanup()
            self._working_dir = None

    def _prediction_path(self, input_file_name: str, suffix: str | None = None) -> str:
        """File for what is predicted for an image."""
        if not self._temp_dir:
            raise RuntimeError("call reset() before process()")
        stem = os.path.splitext(os.path.basename(input_file_name))[0]
        return os.path.join(self._temp_dir, stem + (self._prediction_suffix if suffix is None else suffix))

    def evaluate(self):
        """Score the files; the metrics, in percent, are on the main process, None on others."""
        return self._evaluate(is_whole=True)

    def evaluate_part(self):
        """Score the images that there are files of, where `evaluate` wants all of the split."""
        return self._evaluate(is_whole=False)

    def _evaluate(self, is_whole: bool) -> "OrderedDict[str, dict[str, float]] | None":
        comm.synchronize()
        seen = [name for part in comm.gather(self._seen, dst=0) for name in part]
        if not comm.is_main_process():
            return None
        warn_of_repeated(self, seen, "file_name", "the last prediction counts")
        printed = io.StringIO()
        try:
            predictions, truth = self._paired_files(is_whole)
            module = _cityscapes_module(self._module_name)
            args = copy.copy(module.args)  # the package's own stay as they are
            args.predictionPath, args.predictionWalk = os.path.abspath(self._temp_dir), None
            args.JSONOutput, args.colorized, args.quiet = False, False, True
            args.gtInstancesFile = os.path.join(self._temp_dir, "gtInstances.json")
            with contextlib.redirect_stdout(printed), _adapted_to_today(module):
                results = self._select(module.evaluateImgLists(predictions, truth, args))
        except SystemExit as e:  # the package's way to say that something is wrong
            lines = printed.getvalue().strip().splitlines()
            raise ValueError(f"cityscapesscripts ended the evaluation: {' '.join(lines[-1:]) or e}") from None
        finally:
            self._clean_up()
        for task, metrics in results.items():
            self._logger.info(f"Cityscapes evaluation results for {task}:\n" + create_small_table(metrics))
        return results

    def _paired_files(self, is_whole: bool = True) -> tuple[list[str], list[str]]:
        """Files of predictions and of ground truth, in the same order."""
        root = PathManager.get_local_path(self._metadata.gt_dir)
        truth = {}
        for folder, _, files in os.walk(root):
            truth |= {_frame(f): os.path.join(folder, f) for f in files if f.endswith(self._truth_suffix)}
        if not truth:
            raise FileNotFoundError(f"There are no files */*{self._truth_suffix} in {root!r} (metadata: gt_dir).")
        written = [f for f in os.listdir(self._temp_dir) if f.endswith(self._prediction_suffix)]
        predictions = {_frame(f): os.path.join(self._temp_dir, f) for f in written}
        missing = sorted(set(truth) - set(predictions))
        if missing and is_whole:
            raise ValueError(
                f"{len(missing)} of {len(truth)} images in {root!r} have no prediction, for example {missing[0]!r}. "
                "Cityscapes is scored on all of a split."
            )
        frames = sorted(set(truth) - set(missing))
        return [predictions[frame] for frame in frames], [truth[frame] for frame in frames]

    def _select(self, results: Any) -> OrderedDict[str, dict[str, float]]:
        """The metrics to report, of all that the package gives."""
        raise NotImplementedError(f"{type(self).__name__} must define _select(results)")


def _frame(file_name: str) -> str:
    """`<city>_<sequence>_<frame>`, by which the files of an image are found."""
    return "_".join(file_name.split("_")[:3])


class CityscapesInstanceEvaluator(CityscapesEvaluator):
    """AP of instance masks by Cityscapes' rules. It runs on one machine only, and all processes must call it.

    Args:
        dataset_name: a data set with `gt_dir` and `thing_classes` in its metadata; these are names of Cityscapes,
            in a panoptic data set also of stuff.

    Example:
        >>> evaluator = CityscapesInstanceEvaluator("one_car")  # all of one image
        >>> evaluator.reset()
        >>> found = Instances((100, 100), pred_masks=torch.ones(1, 100, 100), scores=torch.ones(1))
        >>> found.pred_classes = torch.tensor([0])
        >>> evaluator.process([{"file_name": "ulm_000000_000019_leftImg8bit.png"}], [{"instances": found}])
        >>> round(evaluator.evaluate()["segm"]["AP"])
        100
    """

    mask_formats = ("rle", "roi", "full")

    _module_name = "evaluation.evalInstanceLevelSemanticLabeling"
    _truth_suffix = "_gtFine_instanceIds.png"
    _prediction_suffix = "_pred.txt"

    def __init__(self, dataset_name: str):
        super().__init__(dataset_name)
        names = self._metadata.get("thing_classes") or []
        if not names or (unknown := [name for name in names if name not in _ID_OF_NAME]):
            raise ValueError(
                f"CityscapesInstanceEvaluator needs Cityscapes' names as `thing_classes` in the metadata of "
                f"{dataset_name!r} ({sorted(_ID_OF_NAME)}); there is {unknown if names else 'none'}."
            )

    def process(self, inputs: Any, outputs: Any):
        """Write the masks of a batch: inputs with `file_name`, outputs with `instances` if something was found."""
        for input_, output in paired(self, inputs, outputs, "file_name"):
            lines, file_name = [], input_["file_name"]
            if "instances" in output:
                found = output["instances"].to(self._cpu_device)
                usable = without_infinite(found, file_name, not self._leaves_out)
                self._leaves_out |= len(usable) < len(found)
                lines = self._write_masks(file_name, usable)
            self._seen.append(file_name)
            with open(self._prediction_path(file_name), "w", encoding="locale") as f:  # as it is read there
                f.writelines(lines)

    def _write_masks(self, file_name: str, instances: Any) -> list[str]:
        """One PNG for each instance, and the lines that tell their classes and scores."""
        names, lines = self._metadata.thing_classes, []
        rows = zip(whole_masks(instances), instances.pred_classes.tolist(), instances.scores.tolist(), strict=True)
        for number, (mask, label, score) in enumerate(rows):
            if not 0 <= label < len(names):
                raise ValueError(
                    f"The model predicts class {label}, but the data set has {len(names)} classes; the model's number "
                    "of classes (MODEL.ROI_HEADS.NUM_CLASSES) must be that of the data set."
                )
            path = self._prediction_path(file_name, f"_{number}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(path, compress_level=1)
            lines.append(f"{os.path.basename(path)} {_ID_OF_NAME[names[label]]} {score}\n")
        return lines

    def _select(self, results: Any) -> OrderedDict[str, dict[str, float]]:
        averages = results["averages"]
        return OrderedDict(segm={"AP": 100 * float(averages["allAp"]), "AP50": 100 * float(averages["allAp50%"])})


class CityscapesSemSegEvaluator(CityscapesEvaluator):
    """IoU of labels by Cityscapes' rules. It runs on one machine only, and all processes must call it.

    Args:
        dataset_name: a data set with `gt_dir` in its metadata; its labels are Cityscapes' train ids.

    Example:
        >>> evaluator = CityscapesSemSegEvaluator("one_car")  # all of one image
        >>> evaluator.reset()
        >>> scores = nn.functional.one_hot(torch.full((100, 100), 13), 19).permute(2, 0, 1)
        >>> evaluator.process([{"file_name": "ulm_000000_000019_leftImg8bit.png"}], [{"sem_seg": scores}])
        >>> round(evaluator.evaluate()["sem_seg"]["IoU"])
        100
    """

    mask_formats = ()

    _module_name = "evaluation.evalPixelLevelSemanticLabeling"
    _truth_suffix = "_gtFine_labelIds.png"
    _prediction_suffix = "_pred.png"

    def process(self, inputs: Any, outputs: Any):
        """Write the labels of a batch: inputs with `file_name`, outputs with `sem_seg`, scores (K, height, width)."""
        id_of_label = np.array(_IDS_OF_LABELS, dtype=np.uint8)
        for input_, output in paired(self, inputs, outputs, "file_name", "sem_seg"):
            name = self._metadata.get("name")
            labels = predicted_labels(output, len(_IDS_OF_LABELS), input_["file_name"], name)
            self._seen.append(input_["file_name"])
            Image.fromarray(id_of_label[labels]).save(self._prediction_path(input_["file_name"]), compress_level=1)

    def _select(self, results: Any) -> OrderedDict[str, dict[str, float]]:
        source = {
            "IoU": "averageScoreClasses",
            "iIoU": "averageScoreInstClasses",
            "IoU_sup": "averageScoreCategories",
            "iIoU_sup": "averageScoreInstCategories",
        }
        return OrderedDict(sem_seg={name: 100 * float(results[key]) for name, key in source.items()})


def whole_masks(instances: Instances) -> Iterator[np.ndarray]:
    """The masks of instances on the CPU, in whatever form they are, one whole mask after the other.

    Args:
        instances: with `pred_masks` (`ROIMasks`, with `pred_boxes`, are pasted at the threshold 0.5) or
            `pred_masks_rle`.

    Yields:
        Arrays (height, width) that are not zero where the object is.
    """
    if instances.has("pred_masks") and not isinstance(instances.pred_masks, ROIMasks):
        yield from (mask.numpy() for mask in getattr(instances.pred_masks, "tensor", instances.pred_masks))
        return
    if instances.has("pred_masks"):
        parts = paste_masks_in_boxes(instances.pred_masks.tensor, instances.pred_boxes, instances.image_size)
    else:
        parts = map(decode_part, instances.pred_masks_rle)
    for bits, (x, y) in parts:
        mask = np.zeros(instances.image_size, np.bool_)
        mask[y : y + bits.shape[0], x : x + bits.shape[1]] = bits
        yield mask
