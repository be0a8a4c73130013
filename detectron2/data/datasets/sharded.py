"""Data sets in tar shards, as `detectron2 data shard` writes them: on this machine, or at an address of fsspec."""

import functools
import os
from typing import Any

from detectron2.data.catalog import DatasetCatalog, MetadataCatalog
from detectron2.data.formats.reading import timed
from detectron2.data.formats.tar_shards import METADATA_KEYS, read_index
from detectron2.utils.collector import paused_gc
from detectron2.utils.terminal import without_password

__all__ = ["load_sharded_dataset", "register_sharded_dataset"]


def load_sharded_dataset(folder: str | os.PathLike[str], dataset_name: str | None = None) -> list[dict[str, Any]]:
    """Load what is known about the images of a data set in tar shards. No archive is opened.

    Args:
        folder: path, or an address that fsspec knows, such as `s3://bucket/folder`.
        dataset_name: name of the data set. If given, its metadata receives the classes.

    Returns:
        one dict per image in the standard format, in the order of the shards. `file_name` is the address of a file in
        an archive, which `PathManager` and `read_image` open.

    Raises:
        FileNotFoundError: the index or a shard is missing.
        ValueError: a shard has another length than when it was written, or the index is not that of the shards.
    """
    with timed(without_password(os.fspath(folder))), paused_gc():
        index = read_index(folder)
        index.check_shards()
        if dataset_name is not None:
            _set_metadata(dataset_name, index.metadata)
        return list(index.records())


def register_sharded_dataset(name: str, folder: str | os.PathLike[str], metadata: dict[str, Any] | None = None) -> None:
    """Register a data set in tar shards. Nothing is read yet.

    Classes, ids of categories and keypoints are those that it was written with, and known when they are asked for.

    Args:
        name: the name to register.
        folder: path, or an address that fsspec knows. `simplecache::s3://bucket/folder` keeps whole shards on this
            machine once they are read.
        metadata: further metadata of the data set.

    Example:
        >>> register_sharded_dataset("photos", "s3://bucket/photos")
        >>> "photos" in DatasetCatalog
        True
    """
    if not isinstance(name, str):
        raise TypeError(f"The name of a data set is a string, not {name!r}.")
    folder = os.fspath(folder)
    DatasetCatalog.register(name, functools.partial(load_sharded_dataset, folder, name))
    known = MetadataCatalog.get(name).set(dirname=folder, **(metadata or {}))
    known.derive(METADATA_KEYS, functools.partial(_read_metadata, name, folder))


def _read_metadata(name: str, folder: str) -> None:
    _set_metadata(name, read_index(folder).metadata)


def _set_metadata(name: str, metadata: dict[str, Any]) -> None:
    """Set what the index tells, except for what was given in registration."""
    known = MetadataCatalog.get(name).derive(METADATA_KEYS, None)
    known.set(**{key: value for key, value in metadata.items() if known.get(key) is None})
