"""A checkpoint of a model that is split over processes: a folder in which each process writes the part that it has.

The parts are files of `torch.distributed.checkpoint`, from which any number of processes reads what each needs.
`rest.pt` has everything else, with a mark where a split tensor belongs. The folder gets its name when all of it is
written; until then, and for good if a process dies, the name ends in `.tmp`.

The format of PyTorch keeps its table of contents as a pickle; only the classes of such a table are read from it.
"""

import contextlib
import os
import pathlib
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist

from detectron2.checkpoint.files import read_torch_file
from detectron2.checkpoint.training_state import save_tensors
from detectron2.utils.file_io import full_disk_named
from detectron2.utils.safe_pickle import UnsafePickleError

__all__ = [
    "ENDING",
    "REST",
    "is_parts_folder",
    "read_parts",
    "remove_checkpoint",
    "remove_unfinished",
    "separate_parts",
    "write_parts",
]

ENDING = ".sharded"
"""The ending of the names of such folders."""
REST = "rest.pt"
"""The file with everything that is not split."""
_MARK = "tensor in parts"  # the key of a dictionary that stands for a split tensor
_UNFINISHED, _REPLACED = f"{ENDING}.tmp", f"{ENDING}.old"

_Path = tuple[Any, ...]  # the keys that lead to a value in nested containers


def is_parts_folder(path: str) -> bool:
    """Return whether there is such a checkpoint at a local path."""
    return os.path.isfile(os.path.join(path, REST))


def separate_parts(data: Any, *, copies: bool = False) -> tuple[dict[str, torch.Tensor], Any]:
    """Take the split tensors out of what a checkpoint is to hold.

    Args:
        data: nested containers with tensors.
        copies: copy all tensors and arrays to CPU memory, so that training may change them.

    Returns:
        The split tensors by name, and the containers with marks in their place.
    """
    from torch.distributed.tensor import DTensor

    parts: dict[str, torch.Tensor] = {}
    copied: dict[tuple, torch.Tensor] = {}  # tensors that share their memory do so in the copy, too

    def copy(value: torch.Tensor) -> torch.Tensor:
        value = value.detach()
        return value.to("cpu", copy=True) if copies else value

    def visit(value: Any, path: _Path) -> Any:
        if isinstance(value, DTensor):
            name = "/".join(map(str, path))
            parts[name] = copy(value)
            return {_MARK: name}
        if isinstance(value, torch.Tensor):
            key = (value.data_ptr(), value.dtype, value.shape, value.stride())
            return copied.setdefault(key, copy(value)) if copies else value
        if isinstance(value, np.ndarray):
            return value.copy() if copies else value
        if isinstance(value, Mapping):
            kind = OrderedDict if isinstance(value, OrderedDict) else dict
            new = kind((key, visit(inner, (*path, key))) for key, inner in value.items())
            if hasattr(value, "_metadata"):  # versions of modules, which PyTorch keeps beside their weights
                new._metadata = value._metadata  # type: ignore[attr-defined]
            return new
        if type(value) in (list, tuple):
            return type(value)(visit(inner, (*path, i)) for i, inner in enumerate(value))
        return value

    return parts, visit(data, ())


def write_parts(
    folder: str,
    parts: dict[str, torch.Tensor],
    rest: Any,
    group: Any,
    manager: Any,
    finish: Callable[[], None] | None = None,
) -> None:
    """Write a checkpoint; all processes of a group call it, and each writes its parts.

    Args:
        folder: its place, on a file system that all machines see; one that is there is replaced.
        parts: the split tensors.
        rest: everything else, which rank 0 writes.
        group: a gloo group of all processes that nothing else uses meanwhile.
        manager: opens files.
        finish: called on rank 0 when the folder has its name.

    Raises:
        OSError: a file cannot be written, in all processes.
    """
    from torch.distributed.checkpoint import CheckpointException, FileSystemWriter, save

    unfinished, is_main = f"{folder}.tmp", dist.get_rank(group) == 0
    with _together(group):
        if is_main:
            shutil.rmtree(unfinished, ignore_errors=True)
            os.makedirs(unfinished)
    with _together(group):
        if not os.path.isdir(unfinished):
            raise OSError(
                f"{unfinished}, which rank 0 made, is not there for rank {dist.get_rank(group)}. Checkpoints in parts "
                "need an output folder on a file system that all machines see; otherwise set SOLVER.CHECKPOINT_LAYOUT "
                "(train.checkpoint_layout) to 'full'."
            )
    # Without copying ahead, which would use the first GPU from a thread.
    writer = FileSystemWriter(unfinished, per_thread_copy_ahead=0)
    with full_disk_named(unfinished):
        try:
            save(parts, storage_writer=writer, process_group=group)
        except CheckpointException as e:  # not an Exception, and the same in all processes
            rank, (error, _) = next(iter(e.failures.items()))
            text = f"{unfinished} cannot be written: {type(error).__name__} on rank {rank}: {error}"
            raise OSError(text) from error
    with _together(group):
        if is_main:
            save_tensors(rest, os.path.join(unfinished, REST), manager)
            _put_in_place(unfinished, folder)
            if finish is not None:
                finish()


@contextlib.contextmanager
def _together(group: Any) -> Iterator[None]:
    """Let an error of one process within a `with` block be one of all, at its end."""
    error: Exception | None = None
    try:
        yield
    except Exception as e:
        error = e
    errors: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(errors, error and OSError(f"{type(error).__name__}: {error}"), group=group)
    if error is not None:
        raise error
    if other := next((e for e in errors if e is not None), None):
        raise other


def _put_in_place(unfinished: str, folder: str) -> None:
    former = f"{folder}.old"
    if os.path.isdir(folder):
        shutil.rmtree(former, ignore_errors=True)
        os.rename(folder, former)
    os.rename(unfinished, folder)
    shutil.rmtree(former, ignore_errors=True)


def remove_unfinished(folder: str) -> None:
    """Remove what a process that was killed while it saved left in an output folder."""
    for entry in os.listdir(folder):
        path = os.path.join(folder, entry)
        if entry.endswith(_REPLACED) and not os.path.exists(named := path.removesuffix(".old")):
            os.rename(path, named)  # it was killed before the new one had the name
        elif entry.endswith((_UNFINISHED, _REPLACED)):
            shutil.rmtree(path, ignore_errors=True)


def remove_checkpoint(path: str) -> None:
    """Remove a checkpoint, a file or a folder, which has lost its name before the first of its parts is gone."""
    if not os.path.isdir(path):
        os.remove(path)
        return
    os.rename(path, f"{path}.tmp")
    shutil.rmtree(f"{path}.tmp", ignore_errors=True)


def read_parts(
    folder: str, target: Callable[[_Path, torch.Size], torch.Tensor | None] | None = None, *, with_state: bool = True
) -> dict[str, Any]:
    """Read a checkpoint; it needs no other process.

    Args:
        folder: its local path.
        target: returns, for a split tensor with this path in the containers and this size, one to be filled, which may
            be split in another way; None for one that is whole.
        with_state: whether anything but the weights is needed; if not, what has split tensors is left out.

    Returns:
        What a checkpoint in one file holds.

    Raises:
        ValueError: a file is damaged or missing, or the table of contents asks for something else than data.
    """
    from torch.distributed.checkpoint import DefaultLoadPlanner

    rest = read_torch_file(os.path.join(folder, REST))
    if not with_state:
        rest = {key: value for key, value in rest.items() if key == "model" or not any(_marks(value))}
    try:
        reader = _reader(folder)
        contents = reader.read_metadata()
        tensors: dict[str, torch.Tensor] = {}
        for path, name in _marks(rest):
            entry = contents.state_dict_metadata[name]
            found = None if target is None else target(path, entry.size)
            tensors[name] = torch.empty(entry.size, dtype=entry.properties.dtype) if found is None else found
        planner = DefaultLoadPlanner()
        planner.set_up_planner(tensors, contents, True)
        reader.set_up_storage_reader(contents, True)
        plan = planner.finish_plan(reader.prepare_local_plan(planner.create_local_plan()))
        reader.read_data(plan, planner).wait()
    except UnsafePickleError:
        raise
    except Exception as error:  # the library raises anything when the bytes make no sense
        raise ValueError(
            f"{folder} is not a readable checkpoint: {str(error).strip().rstrip('.')[:300] or type(error).__name__}. "
            "Some of its files may be missing or cut off: copy the whole folder once more."
        ) from error
    return _filled(rest, tensors)


def _marks(value: Any, path: _Path = ()) -> Iterator[tuple[_Path, str]]:
    """Yield the path in the containers and the name of each split tensor."""
    if isinstance(value, Mapping):
        if value.keys() == {_MARK}:
            yield path, value[_MARK]
            return
        for key, inner in value.items():
            yield from _marks(inner, (*path, key))
    elif type(value) in (list, tuple):
        for i, inner in enumerate(value):
            yield from _marks(inner, (*path, i))


def _filled(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Put the split tensors into the containers."""
    if isinstance(value, Mapping):
        if value.keys() == {_MARK}:
            return tensors[value[_MARK]]
        for key, inner in value.items():
            value[key] = _filled(inner, tensors)  # type: ignore[index]
    elif type(value) in (list, tuple):
        return type(value)(_filled(inner, tensors) for inner in value)
    return value


_CONTENTS = {
    "torch.distributed.checkpoint.metadata": (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "_MEM_FORMAT_ENCODING", "StorageMeta",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.serialization": ("_get_layout",),
    "torch": ("Size",),
    "builtins": ("set", "frozenset"),
    "collections": ("OrderedDict",),
}  # fmt: skip


class _ContentsUnpickler(pickle.Unpickler):
    """Reads a table of contents."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _CONTENTS.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, 0), torch.dtype)
        ):
            return super().find_class(module, name)
        if module.partition(".")[0] == "pathlib" and name in ("PosixPath", "WindowsPath"):  # where it was saved
            return pathlib.PurePath
        raise UnsafePickleError(
            f"The table of contents of a checkpoint asks for {module}.{name}, which is not among what such a table may "
            "hold, and could run code. It was not loaded."
        )


def _read_contents(file: IO[bytes]) -> Any:
    contents = _ContentsUnpickler(file).load()
    for entry in contents.storage_data.values():
        if os.path.basename(entry.relative_path) != entry.relative_path:
            raise UnsafePickleError(
                f"The table of contents of a checkpoint names the file {entry.relative_path!r}, which is not beside it."
            )
    return contents


def _reader(folder: str) -> Any:
    """Return a reader of the parts that runs no code from the table of contents."""
    from torch.distributed.checkpoint import FileSystemReader

    class Reader(FileSystemReader):
        def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
            with open(os.path.join(folder, ".metadata"), "rb") as file:
                return _read_contents(file)

    return Reader(folder)
