"""The checkpointer of detection models."""

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import torch
import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.checkpoint._prefixes import unwrapped, without_wrappers
from detectron2.checkpoint._read import (
    as_checkpoint,
    file_format,
    read_pickle_file,
    read_safetensors_file,
    read_torch_file,
)
from detectron2.checkpoint._report import LoadReport, check_same_architecture
from detectron2.checkpoint._torchvision_names import resnet_from_torchvision
from detectron2.checkpoint.c2_model_loading import match_by_ends
from detectron2.utils import comm
from detectron2.utils.file_io import DownloadError, PathManager, atomic_write

__all__ = ["DetectionCheckpointer"]

_TORCHVISION_INPUT = (
    "%s has torchvision's names of a ResNet, which were converted. Such weights expect RGB images scaled to [0, 1] "
    "(INPUT.FORMAT RGB, PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, 57.12, 57.375]) and "
    "MODEL.RESNETS.STRIDE_IN_1X1 False."
)


class DetectionCheckpointer(Checkpointer):
    """Saves and loads models together with optimizers, schedules and other training state.

    It reads ``.pth`` files (of ``torch.save``), ``.pkl`` files (the published model zoo, Detectron 1 and Caffe2) and
    ``.safetensors``, from paths, URLs, ``detectron2://`` and ``catalog://``; only data is read, code in a file is
    refused. Names of older models are converted. In distributed training the file need only be on the machine of
    rank 0. ``path?matching_heuristics=True`` matches weights by the ends of their names; prefixes of wrappers
    (``module.``, ``model.``, ``_orig_mod.``, …) do not matter.

    What was loaded and what was not is written to the log in one table, as a warning unless only the classes differ
    or the file is of a part of the model. :meth:`load_for_inference` accepts neither.

    Args:
        model: the model; a wrapper for parallel training is taken off.
        save_dir: where checkpoints are saved and looked for.
        save_to_disk: whether this process saves; by default only rank 0 does.
        **checkpointables: objects with ``state_dict()`` and ``load_state_dict()``, saved and loaded along.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        **checkpointables: Any,
    ):
        plain = unwrapped(model)
        super().__init__(
            plain,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )
        self.logger = logging.getLogger(__name__)
        self.path_manager = PathManager
        # A plain model may be loaded by one rank alone, so that only a wrapped one makes the ranks talk to each other.
        inner = getattr(model, "_orig_mod", model)  # of a compiled one
        self._is_distributed = isinstance(inner, nn.parallel.DistributedDataParallel)
        # About the file that is being loaded, for messages:
        self._source = "the checkpoint"
        self._covers: Callable[[str], bool] | None = None  # where it is of a part of the model: names in that part
        self._must_be_complete = False

    def save(self, name: str, **kwargs: Any) -> None:
        """Save everything to ``<save_dir>/<name>.pth``, which then counts as the last checkpoint.

        The file appears under its name only when it is complete.

        Args:
            name: file name without folder and extension.
            **kwargs: further data to save, returned by :meth:`load`.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        basename = f"{name}.pth"
        if os.path.basename(basename) != basename:
            raise ValueError(f"A checkpoint's name must not contain a folder, but is {name!r}; set save_dir instead.")
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = os.path.join(self.save_dir, basename)
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path, "wb", self.path_manager) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(basename)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Remember which file to resume from.

        Args:
            last_filename_basename: name of a file in ``save_dir``.
        """
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w", self.path_manager) as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: Iterable[str] | None = None) -> dict[str, Any]:
        """Load a file into the model and the checkpointables.

        Args:
            path: path or URL; nothing is loaded when it is empty.
            checkpointables: names of those to load; all when None.

        Returns:
            What else the file holds, for instance ``iteration``.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no checkpoint, or of another architecture.
            UnsafeCheckpointError: it holds more than data.
        """
        if not path:
            self.logger.info("No checkpoint given: the model keeps its initialization.")
            return {}
        self.logger.info("Loading from %s ...", path)
        checkpoint = self._read_on_all_ranks(path)
        self._source = path
        incompatible = self._load_model(checkpoint)
        if incompatible is not None:  # subclasses of other projects may return nothing
            self._log_incompatible_keys(incompatible)
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.logger.info("Loading the state of %s ...", key)
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
            elif "__author__" not in checkpoint:
                self.logger.warning("%s has no state of %r, which therefore starts afresh.", path, key)
        return checkpoint

    def load_for_inference(self, path: str, *, resume: bool = False) -> dict[str, Any]:
        """Load all weights of a model that is to predict; training state is left alone.

        Training may start from a part of a model or with other classes, and :meth:`load` then writes to the log what
        was left out. Predictions of a model that is in part random mean nothing: here that is an error.

        Args:
            path: as for :meth:`load`. When it is empty nothing is loaded, with a warning.
            resume: take the last checkpoint in ``save_dir`` instead, if there is one.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it does not fill the model, is no checkpoint, or of another architecture.
        """
        if resume and self.has_checkpoint():
            path = self.get_checkpoint_file()
        if not path:
            self.logger.warning("The model has no weights: its predictions are random. Set MODEL.WEIGHTS.")
            return {}
        self._must_be_complete = True
        try:
            return self.load(path, checkpointables=[])
        finally:
            self._must_be_complete = False

    def get_all_checkpoint_files(self) -> list[str]:
        """Paths of the ``.pth`` files in ``save_dir``."""
        if not self.path_manager.isdir(self.save_dir):
            return []
        return super().get_all_checkpoint_files()

    def _read_on_all_ranks(self, path: str) -> dict[str, Any]:
        """Read the file here, or where a machine lacks it, receive its content from rank 0."""
        if not self._is_distributed or comm.get_world_size() == 1:
            return self._read(path)
        try:
            self._local_file(path)
            is_here = True
        except OSError:  # a failed download as well: the other ranks wait for this one's answer
            is_here = False
        where = comm.all_gather(is_here)
        if all(where) or not where[0]:  # without the file on rank 0, every rank reports that it is missing
            return self._read(path)
        self.logger.warning("%s is not on every machine: rank 0 sends it to the others.", path)
        box: list[Any] = [None]
        if comm.is_main_process():
            try:
                box[0] = self._read(path)
            except (ValueError, OSError, ImportError) as error:  # the others wait: let them fail, too
                box[0] = error
        dist.broadcast_object_list(box, src=0, group=comm._get_global_gloo_group())
        if isinstance(box[0], Exception):
            raise box[0]
        return box[0]

    def _local_file(self, path: str) -> tuple[str, bool]:
        """(local file, whether the path asks for the matching of names by their ends)."""
        heuristics = False
        if not os.path.isfile(path):  # a file may have a question mark in its name
            options = parse_qs(urlsplit(path).query)
            if "matching_heuristics" in options:
                if len(options) > 1 or options["matching_heuristics"] not in (["True"], ["False"]):
                    raise ValueError(f"{path}: only '?matching_heuristics=True' may follow the name of a file.")
                heuristics = options["matching_heuristics"] == ["True"]
                path = path.partition("?")[0]
            path = self._download(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"There is no checkpoint {path}; {_what_is_beside(path)}. Check the path.")
        return path, heuristics

    def _download(self, path: str) -> str:
        try:
            return self.path_manager.get_local_path(path)
        except DownloadError as error:
            if error.status not in (403, 404):
                raise
            from detectron2.model_zoo.checkpoints import nearest_weights

            # Amazon S3 answers 403 as well where there is no such file.
            raise DownloadError(f"{error} {nearest_weights(path)}", error.url, error.cached, error.status) from error

    def _read(self, path: str) -> dict[str, Any]:
        local, heuristics = self._local_file(path)
        checkpoint = self._load_file(local)
        if heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        """The content of a local file as a dictionary with the key ``model``. Subclasses may add formats."""
        kind = file_format(filename)
        if kind == "safetensors":
            return read_safetensors_file(filename)
        data = self._torch_load(filename) if kind == "torch" else read_pickle_file(filename)
        return as_checkpoint(data, filename, is_pickle=kind == "pickle")

    def _torch_load(self, f: str) -> Any:
        """Read a file of ``torch.save``."""
        return read_torch_file(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Load ``checkpoint.pop("model")``; returns missing, unexpected and resized names."""
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        model_state = self.model.state_dict()
        weights = without_wrappers(weights, model_state)
        heuristics = checkpoint.get("matching_heuristics", False)
        converted = resnet_from_torchvision(weights, model_state)
        if converted is not None:
            self.logger.warning(_TORCHVISION_INPUT, self._source)
            weights, heuristics = converted, True
        self._covers = None
        if heuristics:
            is_caffe2 = checkpoint.get("__author__") == "Caffe2"
            matching = match_by_ends(model_state, weights, is_caffe2)
            weights = matching.renamed()
            # Statistics of batch norm are part of the scale and shift in Caffe2 files.
            folded = (".running_mean", ".running_var") if is_caffe2 else ()
            self._covers = lambda key: matching.covers(key) and not key.endswith(folded)
        check_same_architecture(model_state, weights, self._source)
        checkpoint["model"] = weights
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        report = LoadReport.of(self.model, incompatible, self._covers)
        if self._must_be_complete:
            report.require_complete(self._source)
        report.log(self.logger, self._source)


def _what_is_beside(path: str) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        return f"the folder {folder} does not exist"
    others = sorted(name for name in os.listdir(folder) if name.endswith((".pth", ".pkl", ".safetensors")))
    return f"the folder {folder} holds {', '.join(others)}" if others else f"the folder {folder} holds no checkpoint"
