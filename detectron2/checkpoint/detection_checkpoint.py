"""The checkpointer of detection models."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.checkpoint.c2_model_loading import match_by_ends, resnet_from_torchvision, without_wrappers
from detectron2.checkpoint.files import (
    as_checkpoint,
    file_format,
    read_pickle_file,
    read_torch_file,
    read_weights,
    require_file,
)
from detectron2.checkpoint.load_report import START_ANEW, LoadReport, OtherModelError, check_same_architecture
from detectron2.checkpoint.parts import ENDING, REST, is_parts_folder, read_parts, remove_unfinished
from detectron2.checkpoint.provenance import weights_origin
from detectron2.checkpoint.timm_weights import TIMM_PREFIX, is_resnet_of_ours, place_in_model
from detectron2.checkpoint.torchvision_weights import (
    CONFIGS,
    convert_torchvision_detector,
    has_published_eps,
    is_torchvision_detector,
    torchvision_differences,
)
from detectron2.checkpoint.training_state import (
    DESCRIPTION,
    describe_again,
    read_beside,
    remove_orphans,
    save_in_two_files,
    save_tensors,
    state_file,
)
from detectron2.utils import comm
from detectron2.utils.file_io import DownloadError, PathManager, atomic_write
from detectron2.utils.safe_pickle import UnsafePickleError
from detectron2.utils.terminal import without_password
from detectron2.utils.wrappers import unwrap_model

__all__ = ["DetectionCheckpointer", "parameter_versions"]


def _may_be_alive(pid: int) -> bool:
    if os.name == "nt":  # there, kill(pid, 0) ends the process, and a file that a process writes cannot be removed
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # another user's
    except OverflowError:
        return False
    return True


class DetectionCheckpointer(Checkpointer):
    """Saves and loads models together with optimizers, schedules and other training state.

    It reads `.pth` files (of `torch.save`), `.pkl` files (the published model zoo, Detectron 1 and Caffe2),
    `.safetensors`, and folders in which several processes saved their parts, from paths, URLs, `detectron2://`,
    `catalog://`, `torchvision://`, `timm://` and `hf://`; only data is read, code in a file is refused. Names of
    older models are converted. In distributed training the file need only be on the machine of rank 0.
    `path?matching_heuristics=True` matches weights by the ends of their names; prefixes of wrappers (`module.`,
    `model.`, `_orig_mod.`, …) do not matter.

    What was loaded and what was not is written to the log in one table, as a warning unless only the classes differ
    or the file is of a part of the model. `load_for_inference` accepts neither.

    Args:
        model: the model; a wrapper for parallel training is taken off.
        save_dir: where checkpoints are saved and looked for.
        save_to_disk: whether this process saves; by default only rank 0 does.
        **checkpointables: objects with `state_dict()` and `load_state_dict()`, saved and loaded along.

    Attributes:
        file_format: `"pth"`, or `"safetensors"`: then the weights go to a file of their own, which needs no pickle
            and is read by other programs, and the rest to `<name>.state.pt` beside it.
        describe: makes the description that is saved along, see
            `detectron2.checkpoint.CheckpointDescription`; trainers set it.
    """

    FILE_FORMATS: ClassVar[tuple[str, ...]] = ("pth", "safetensors")
    file_format: str = "pth"
    describe: Callable[[], Mapping[str, Any]] | None = None
    # Whether every process has to call save(), because each has a part of the weights.
    needs_all_processes: bool = False

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ):
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(unwrap_model(model), save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.logger = logging.getLogger(__name__)
        self.path_manager = PathManager
        # A plain model may be loaded by one rank alone, so that only a wrapped one makes the ranks talk to each other.
        inner = getattr(model, "_orig_mod", model)  # of a compiled one
        self._is_distributed = isinstance(inner, nn.parallel.DistributedDataParallel)
        # About the file that is being loaded, for messages:
        self._source = "the checkpoint"
        self._covers: Callable[[str], bool] | None = None  # where it is of a part of the model: names in that part
        self._must_be_complete, self._is_resuming, self._wants_state = False, False, True

    def save(self, name: str, **kwargs: Any) -> None:
        """Save everything to `<save_dir>/<name>.pth`, which then counts as the last checkpoint.

        The file appears under its name only when it is complete. With the other `file_format` there are two. `kwargs`
        are further data to save, which `load` returns.
        """
        basename = self.save_aside(name, **kwargs)
        if basename:
            self.tag_last_checkpoint(basename)

    def save_aside(self, name: str, **kwargs: Any) -> str | None:
        """Save like `save`, without a change to which checkpoint counts as the last one.

        Returns the name of the file, or `None` where this process does not save.
        """
        if not self.save_dir or not self.save_to_disk:
            return None
        if os.path.basename(name) != name:
            raise ValueError(f"A checkpoint's name must not contain a folder, but is {name!r}; set save_dir instead.")
        data = self._content(name, kwargs)
        self.logger.info("Saving checkpoint to %s", os.path.join(self.save_dir, self.file_name(name)))
        return self._write(name, data)

    def _content(self, name: str, more: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a checkpoint holds; `name` is for messages."""
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        if self.describe is not None and self.save_to_disk:
            try:
                data[DESCRIPTION] = dict(self.describe())
            except Exception:  # whatever it is, the weights matter more
                self.logger.exception("%s is saved without a description, since making it failed:", name)
        return data | dict(more)

    def _write(self, name: str, data: Mapping[str, Any]) -> str:
        """Write what a checkpoint holds, and return the name of the file."""
        if self.file_format == "safetensors":
            return save_in_two_files(self.save_dir, name, data, self.path_manager)
        basename = f"{name}.{self.file_format}"
        save_tensors(data, os.path.join(self.save_dir, basename), self.path_manager)
        return basename

    def wait(self) -> None:
        """Wait until what is being saved has its name; here `save` does not return before."""

    def file_name(self, name: str) -> str:
        """Return the file that a checkpoint of this name has: the name with the ending of `file_format`."""
        if self.file_format not in self.FILE_FORMATS:
            raise ValueError(f"A checkpoint is saved as one of {self.FILE_FORMATS}, not as {self.file_format!r}.")
        return f"{name}.{self.file_format}"

    def describe_again(self, name: str, **changes: Any) -> None:
        """Write the present description, with changes, into a saved checkpoint; do nothing if there is none."""
        path = os.path.join(self.save_dir, self.file_name(name))
        path = os.path.join(path, REST) if is_parts_folder(path) else path
        if self.describe is not None and self.save_dir and self.save_to_disk and os.path.isfile(path):
            describe_again(path, {**self.describe(), **changes}, self.path_manager)

    def remove_leftovers(self) -> None:
        """Remove what a process that was killed while it saved left in `save_dir`; leave what a living one writes."""
        if not self.save_to_disk or not os.path.isdir(self.save_dir):
            return
        for entry in os.listdir(self.save_dir):
            name = re.fullmatch(r"(?:.*\.(?:pth|safetensors|state2?\.pt|json)|last_checkpoint)\.(\d+)\.tmp", entry)
            if name and not _may_be_alive(int(name[1])):
                with contextlib.suppress(PermissionError):
                    os.remove(os.path.join(self.save_dir, entry))
        remove_orphans(self.save_dir)
        remove_unfinished(self.save_dir)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Remember the name of the file in `save_dir` to resume from."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w", self.path_manager) as file:
            file.write(last_filename_basename)

    def load(self, path: str, checkpointables: Iterable[str] | None = None) -> dict[str, Any]:
        """Load a file into the model and the checkpointables.

        Args:
            path: path or URL; nothing is loaded when it is empty.
            checkpointables: names of those to load; all when None.

        Returns:
            What else the file holds, for instance `iteration`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a checkpoint, or of another architecture.
            UnsafeCheckpointError: it holds more than data.
        """
        if not path:
            self.logger.info("No checkpoint given: the model keeps its initialization.")
            return {}
        self.logger.info("Loading from %s ...", without_password(path))
        # Without a list, everything that is to be restored; an empty list: nothing but the weights.
        self._wants_state = bool(self.checkpointables if checkpointables is None else checkpointables)
        checkpoint = self._read_on_all_ranks(path)
        self._source = without_password(path)
        if comm.is_main_process() and (origin := weights_origin(path)) is not None:
            self.logger.info(origin)
        incompatible = self._load_model(checkpoint)
        if incompatible is not None:  # subclasses of other projects may return nothing
            self._log_incompatible_keys(incompatible)
        if (record := getattr(self.model, "_weights_record", None)) is not None:
            description = checkpoint.get(DESCRIPTION)
            said = description.get("metadata") if isinstance(description, Mapping) else None
            # class names of the weights, as long as these are what was loaded
            record.update(metadata=said if isinstance(said, Mapping) else {}, versions=parameter_versions(self.model))
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key in checkpoint:
                self.logger.info("Loading the state of %s ...", key)
                try:
                    self.checkpointables[key].load_state_dict(checkpoint.pop(key))
                except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                    why = f"it lacks {error}" if isinstance(error, KeyError) else error
                    raise OtherModelError(
                        f"The state of {key!r} in {path} does not fit this training ({why}). To continue a training, "
                        f"its config has to stay as it was: optimizer, frozen parts, schedule. {START_ANEW}"
                    ) from error
            elif "__author__" not in checkpoint:
                self.logger.warning("%s has no state of %r, which therefore starts afresh.", path, key)
        return checkpoint

    def load_for_inference(self, path: str, *, resume: bool = False) -> dict[str, Any]:
        """Load all weights of a model that is to predict; training state is left alone.

        Training may start from a part of a model or with other classes, and `load` then writes to the log what
        was left out. Predictions of a model that is in part random mean nothing: here that is an error.

        Args:
            path: as for `load`. When it is empty nothing is loaded, with a warning.
            resume: take the last checkpoint in `save_dir` instead, if there is one.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it does not fill the model, is not a checkpoint, or is of another architecture.
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

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from the last checkpoint in `save_dir`, with everything, or load weights alone.

        Args:
            path: the weights to load where nothing is resumed.
            resume: whether to look for a last checkpoint.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError: the last checkpoint, or the weights, are not where they should be.
            ValueError: the last checkpoint is damaged, or of a model with other shapes.
        """
        if not resume or not self.has_checkpoint():
            if resume and (names := self._numbered_checkpoints()):
                last = os.path.join(self.save_dir, "last_checkpoint")
                self.logger.warning(
                    f"{self.save_dir} holds checkpoints ({', '.join(names)}), but no file last_checkpoint, which names "
                    "the one to go on from: this training starts from the beginning. To continue instead: "
                    f"echo {names[-1]} > {last}"
                )
            return self.load(path, checkpointables=[])
        last = self.get_checkpoint_file()
        self._is_resuming = True
        try:
            return self.load(last)
        except OtherModelError:
            raise
        except (ValueError, FileNotFoundError) as error:
            kinds = (UnsafePickleError, ValueError, FileNotFoundError)
            kind = next(k for k in kinds if isinstance(error, k))
            text = f"{error} It was to be resumed, since {os.path.join(self.save_dir, 'last_checkpoint')} names it"
            others = ", ".join(name for name in self._numbered_checkpoints() if name != os.path.basename(last))
            text += f"; others, which could be named there instead, are {others}." if others else "."
            raise kind(text) from error
        finally:
            self._is_resuming = False

    def _numbered_checkpoints(self) -> list[str]:
        """Return the names of the last periodic checkpoints in `save_dir`."""
        names = sorted(os.path.basename(path) for path in self.get_all_checkpoint_files())
        return [name for name in names if re.fullmatch(r"model_\d{7,}\.(pth|safetensors|sharded)", name)][-3:]

    def get_checkpoint_file(self) -> str:
        """Return the path of the checkpoint to resume from, "" if there is none; damage is a `ValueError`."""
        last = os.path.join(self.save_dir, "last_checkpoint")
        try:
            path = super().get_checkpoint_file()
        except UnicodeDecodeError:
            path = "\0"
        if not path.isprintable():
            names = ", ".join(self._numbered_checkpoints()) or "none there"
            raise ValueError(
                f"{last} is damaged: expected the name of a checkpoint in that folder, got what is not a name. Write "
                f"the one to resume from into it (the newest are {names}), or delete it to start from the beginning."
            )
        return path

    def get_all_checkpoint_files(self) -> list[str]:
        """Return the paths of the `.pth` and `.safetensors` files and of the `.sharded` folders in `save_dir`."""
        if not self.path_manager.isdir(self.save_dir):
            return []
        paths = [os.path.join(self.save_dir, name) for name in self.path_manager.ls(self.save_dir)]
        files = [path for path in paths if path.endswith((".pth", ".safetensors")) and self.path_manager.isfile(path)]
        return files + [path for path in paths if path.endswith(ENDING) and is_parts_folder(path)]

    def _read_on_all_ranks(self, path: str) -> dict[str, Any]:
        """Read the file here, or where a machine lacks it, receive its content from rank 0."""
        if not self._is_distributed or comm.get_world_size() == 1:
            return self._read(path)
        try:
            is_here = self._has_its_state(self._local_file(path)[0])
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

    def _has_its_state(self, path: str) -> bool:
        """Whether the second file of a checkpoint in two files, if there is to be one, is on this machine as well."""
        beside = state_file(path) if path.endswith(".safetensors") and self._wants_state else None
        return beside is None or os.path.isfile(beside)

    def _local_file(self, path: str) -> tuple[str, bool]:
        """Return the local file, and whether the path asks for the matching of names by their ends."""
        heuristics = False
        if is_parts_folder(path):
            return path, False
        if not os.path.isfile(path):  # a file may have a question mark in its name
            options = parse_qs(urlsplit(path).query)
            if "matching_heuristics" in options:
                if len(options) > 1 or options["matching_heuristics"] not in (["True"], ["False"]):
                    raise ValueError(f"{path}: only '?matching_heuristics=True' may follow the name of a file.")
                heuristics = options["matching_heuristics"] == ["True"]
                path = path.partition("?")[0]
            try:
                path = self.path_manager.get_local_path(path)
            except DownloadError as error:
                if error.status not in (403, 404):  # Amazon S3 answers 403 as well where there is no such file
                    raise
                from detectron2.model_zoo.checkpoints import nearest_weights

                text = f"{error} {nearest_weights(path)}"
                raise DownloadError(text, error.url, error.cached, error.status) from error
        require_file(path)
        return path, heuristics

    def _read(self, path: str) -> dict[str, Any]:
        local, heuristics = self._local_file(path)
        checkpoint = self._load_file(local)
        if heuristics:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_file(self, filename: str) -> dict[str, Any]:
        """The content of a local file as a dictionary with the key `model`. Subclasses may add formats."""
        if is_parts_folder(filename):
            return as_checkpoint(read_parts(filename, with_state=self._wants_state), filename, is_pickle=False)
        kind = file_format(filename)
        if kind == "safetensors":
            weights, texts = read_weights(filename)
            return {"model": weights, **read_beside(filename, texts, is_needed=self._wants_state)}
        data = self._torch_load(filename) if kind == "torch" else read_pickle_file(filename)
        return as_checkpoint(data, filename, is_pickle=kind == "pickle")

    def _torch_load(self, f: str) -> Any:
        """Read a file of `torch.save`."""
        return read_torch_file(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Load `checkpoint.pop("model")`; returns missing, unexpected and resized names."""
        weights = checkpoint["model"]
        self._convert_ndarray_to_tensor(weights)
        model_state = self.model.state_dict()
        in_file = weights
        if not weights and model_state:
            raise ValueError(f"{self._source} holds no weights: its 'model' is empty. Take another file.")
        weights = without_wrappers(weights, model_state)
        if convert := getattr(self.model, "convert_weights", None):  # the model knows files of other programs
            try:
                weights = convert(weights)
            except ValueError as error:
                raise ValueError(f"{self._source}: {error}") from error
        heuristics = checkpoint.get("matching_heuristics", False)
        if is_torchvision_detector(weights) and not is_torchvision_detector(model_state):
            weights = self._from_torchvision_detector(weights)
        is_of_timm = self._source.startswith(TIMM_PREFIX)
        place = place_in_model(in_file, model_state) if is_of_timm else None
        if is_of_timm and place is None and not is_resnet_of_ours(self._source):
            raise ValueError(
                f"{self._source} is of a network of timm, and this model has none: set MODEL.BACKBONE.NAME to "
                "build_timm_fpn_backbone (of RetinaNet: build_retinanet_timm_fpn_backbone) and MODEL.TIMM.NAME to its "
                "architecture. Into a ResNet of this library load plain ones, such as timm://resnet50.a1_in1k."
            )
        converted = resnet_from_torchvision(weights, model_state)
        if converted is not None:
            self.logger.warning(
                f"{self._source} has torchvision's names of a ResNet, which were converted. Such weights expect RGB "
                "images scaled to [0, 1] (INPUT.FORMAT RGB, PIXEL_MEAN [123.675, 116.28, 103.53], PIXEL_STD [58.395, "
                "57.12, 57.375]) and MODEL.RESNETS.STRIDE_IN_1X1 False."
            )
            weights, heuristics = converted, True
        self._covers = None
        if place is not None:
            weights = {f"{place}{key}": value for key, value in in_file.items()}
            self._covers = lambda key: key.startswith(place)
        if heuristics:
            is_caffe2 = checkpoint.get("__author__") == "Caffe2"
            matching = match_by_ends(model_state, weights, is_caffe2)
            weights = matching.renamed()
            # Statistics of batch norm are part of the scale and shift in Caffe2 files.
            folded = (".running_mean", ".running_var") if is_caffe2 else ()
            self._covers = lambda key: matching.covers(key) and not key.endswith(folded)
        known = getattr(self.model, "known_programs", ())
        check_same_architecture(model_state, weights, self._source, in_file, known)
        checkpoint["model"] = weights
        return super()._load_model(checkpoint)

    def _from_torchvision_detector(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Convert weights of a torchvision detector; where the model computes something else, leave them."""
        differences = ["its parts have other names than those of Faster R-CNN or RetinaNet here"]
        if "backbone.fpn_lateral5.weight" in self.model.state_dict() and hasattr(self.model, "pixel_mean"):
            differences = torchvision_differences(self.model)
        if differences:
            text = (
                f"{self._source} is of a torchvision detector, and this model computes something else: "
                f"{'; '.join(differences)}. The configs {', '.join(CONFIGS.values())} of the model zoo have all of it."
            )
            if self._must_be_complete:
                raise ValueError(text)
            self.logger.warning(f"{text} Only the backbone is loaded.")
            return weights
        num_classes = getattr(self.model, "num_classes", None)
        if num_classes is None:
            num_classes = self.model.roi_heads.num_classes  # type: ignore[union-attr]  # both detectors have one
        is_published = has_published_eps(self._source)
        try:
            converted = convert_torchvision_detector(weights, num_classes, 0.0 if is_published else 1e-5)  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{self._source}: {error}") from error
        eps = "0, as in the detectors that torchvision publishes" if is_published else "1e-5; of a model trained from "
        if not is_published:
            eps += "published ones it is 0, see detectron2.checkpoint.torchvision_weights.convert_torchvision_detector"
        self.logger.info(f"{self._source} is of a torchvision detector and was converted. Its batch norms: eps {eps}.")
        return converted

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        report = LoadReport.of(self.model, incompatible, self._covers)
        if self._must_be_complete:
            report.require_complete(self._source)
        if self._is_resuming:
            report.require_same_shapes(self._source)
        # For who wonders later why the model finds nothing.
        record = {"source": self._source, "loaded": report.loaded, "total": report.total}
        self.model._weights_record = record  # type: ignore[assignment]  # a module takes any attribute
        report.log(self.logger, self._source)


def parameter_versions(model: nn.Module) -> tuple[int, list[float]]:
    """Return what changes when the parameters are written to: PyTorch's count of writes, and one value of each.

    Fused optimizers write without counting.
    """
    parameters = [p for p in model.parameters() if not p.is_meta]
    local = [getattr(p, "to_local", lambda p=p: p)().detach() for p in parameters]  # of a model in shards
    first = [v for p in local for v in p[(slice(1),) * p.dim()].reshape(-1).tolist()]
    return sum(0 if p.is_inference() else p._version for p in parameters), first
