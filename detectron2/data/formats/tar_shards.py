"""Data sets in tar archives, for those that are too many files: write them, and read what is known about them.

A folder holds, all written by `write_shards`:

- `NAME-000000.tar`, `NAME-000001.tar` ..., the shards: uncompressed archives in the layout of WebDataset. Files of one
  image stand beside each other and have the same name up to the first dot: `KEY.jpg`, the image as it was;
  `KEY.sem_seg.png` and `KEY.pan_seg.png` where there are label maps; `KEY.json`, its dict in the standard format.
- `samples.jsonl`: a line for each image, in the order of the shards, with that dict again, and with the place of each
  file: `[name, offset, length]` in bytes. With it no archive has to be opened before an image is needed.
- `index.json`: the shards with their lengths, and the metadata of the data set.
"""

import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from detectron2.data.formats.annotated_images import write_folder_atomically
from detectron2.data.formats.reading import (
    AnnotationFileError,
    check_keys,
    checked_objects,
    describe,
    image_size_hw,
    shorten,
)
from detectron2.data.formats.run_lengths import encode_mask
from detectron2.data.tar_members import TarMember, is_remote
from detectron2.structures import BoxMode
from detectron2.utils.collector import paused_gc
from detectron2.utils.file_io import PathManager, full_disk_named
from detectron2.utils.terminal import without_password

__all__ = ["METADATA_KEYS", "Shard", "ShardIndex", "is_sharded", "read_index", "write_shards"]

SCHEMA = "detectron2.tar_shards/1"
_INDEX, _SAMPLES = "index.json", "samples.jsonl"
_FILE_KEYS = {"file_name": "", "sem_seg_file_name": ".sem_seg", "pan_seg_file_name": ".pan_seg"}
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)
_SUFFIX = re.compile(r"\.[a-z0-9]{1,5}")
_LONGEST_KEY = 80  # with the suffixes it then fits into the header of a file
_LINES_AT_A_TIME = 500

METADATA_KEYS = (
    *("thing_classes", "thing_colors", "thing_dataset_id_to_contiguous_id"),
    *("stuff_classes", "stuff_colors", "stuff_dataset_id_to_contiguous_id"),
    *("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules"),
    *("ignore_label", "label_divisor", "evaluator_type", "class_image_count", "degenerate_boxes"),
)
"""What of the metadata of a data set goes along; the rest are paths of files that stay where they are."""


@dataclass
class Shard:
    """An archive.

    Args:
        file: its name.
        bytes: its length.
        samples: number of images.
    """

    file: str
    bytes: int
    samples: int


@dataclass
class ShardIndex:
    """What is known about a data set in shards without reading its images.

    Args:
        folder: path or address.
        shards: the archives, in order.
        metadata: the `METADATA_KEYS` that are set.
    """

    folder: str
    shards: list[Shard]
    metadata: dict[str, Any]

    @property
    def num_images(self) -> int:
        """The number of images in all shards."""
        return sum(shard.samples for shard in self.shards)

    def check_shards(self) -> None:
        """Check that all archives are there and have the length that they were written with.

        Raises:
            FileNotFoundError: one is missing.
            ValueError: one has another length.
        """
        sizes = _sizes_in(self.folder, [shard.file for shard in self.shards])
        where = without_password(self.folder)
        missing = [shard.file for shard in self.shards if shard.file not in sizes]
        if missing:
            packed = sorted(name for name in sizes if name.startswith(f"{missing[0]}."))
            cure = f" There is {packed[0]}: shards are read from any place, so unpack it." if packed else ""
            raise FileNotFoundError(
                f"'{where}' lacks {len(missing)} of {len(self.shards)} shards that its {_INDEX} lists: "
                f"{shorten(missing)}.{cure or ' Copy the folder again, all of it.'}"
            )
        for shard in self.shards:
            size = sizes[shard.file]
            if size is None or size == shard.bytes:
                continue
            cut_off = "It was not copied completely; copy it again"
            other = f"{_INDEX} and shards are of different data sets; copy all of one of them"
            raise ValueError(
                f"'{where}/{shard.file}' has {size} bytes, and {_INDEX} says {shard.bytes}. "
                f"{cut_off if size < shard.bytes else other}."
            )

    def records(self) -> Iterator[dict[str, Any]]:
        """Go through the images; only some lines of the file are in memory.

        Yields:
            a dict in the standard format for each image.

        Raises:
            FileNotFoundError: the file of the samples is missing.
            ValueError: it is not that of these shards.
        """
        path = _join(self.folder, _SAMPLES)
        number = 0
        with _open(path) as file:
            while lines := list(itertools.islice(file, _LINES_AT_A_TIME)):
                for sample in _parsed(lines, path, number):
                    yield self._record(sample, path, number)
                    number += 1
        if number != self.num_images:
            raise AnnotationFileError(
                path, "", f"it has {number} lines, and {_INDEX} says {self.num_images}: copy both again."
            )

    def _record(self, sample: Any, path: str, number: int) -> dict[str, Any]:
        where = f"line {number + 1}"
        if not isinstance(sample, dict):
            raise AnnotationFileError(path, where, f"expected an object, not {describe(sample)}.")
        check_keys(sample, path, where, "shard", "files", "record")
        record, files = sample["record"], sample["files"]
        if not isinstance(record, dict) or not isinstance(files, dict) or "file_name" not in files:
            raise AnnotationFileError(path, where, "'record' and 'files' must be objects, the second with 'file_name'.")
        if type(sample["shard"]) is not int or not 0 <= sample["shard"] < len(self.shards):
            raise AnnotationFileError(
                path, where, f"'shard' must be below {len(self.shards)}, the number of shards of {_INDEX}, not "
                f"{describe(sample['shard'])}."
            )  # fmt: skip
        shard = self.shards[sample["shard"]]
        places = {key: self._address(shard, place, path, where) for key, place in files.items()}
        try:
            for annotation in record.get("annotations", ()):
                if "bbox_mode" in annotation:
                    annotation["bbox_mode"] = BoxMode(annotation["bbox_mode"])
        except (TypeError, ValueError) as e:
            raise AnnotationFileError(path, where, f"its annotations cannot be used: {e}.") from None
        return {"file_name": places.pop("file_name"), **record, **places}

    def _address(self, shard: Shard, place: Any, path: str, where: str) -> str:
        is_place = isinstance(place, list) and list(map(type, place)) == [str, int, int]
        if not is_place or not _PLAIN_NAME.fullmatch(place[0]):
            raise AnnotationFileError(
                path, where, f"a file must be [name, offset, length], with a name without folders, not {place!r}."
            )
        if not 0 < place[1] <= place[1] + place[2] <= shard.bytes:
            raise AnnotationFileError(
                path, where, f"'{place[0]}' does not lie within the {shard.bytes} bytes of {shard.file}; {_INDEX} and "
                f"{_SAMPLES} are of different data sets."
            )  # fmt: skip
        return TarMember(_join(self.folder, shard.file), *place).address


# Reading


def is_sharded(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder on this machine is one that `write_shards` has written."""
    return os.path.isfile(os.path.join(folder, _INDEX)) and os.path.isfile(os.path.join(folder, _SAMPLES))


def read_index(folder: str | os.PathLike[str]) -> ShardIndex:
    """Read what shards there are, and the metadata.

    Args:
        folder: path, or an address that fsspec knows.

    Returns:
        the index; the archives are not looked at.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: it is of another kind, or names files outside of the folder.
    """
    folder = os.fspath(folder).rstrip("/")
    path = _join(folder, _INDEX)
    with _open(path) as file:
        try:
            content = json.load(file)
        except ValueError as e:
            raise AnnotationFileError(path, "", f"this is not a JSON file: {e}") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else describe(content)
        raise AnnotationFileError(path, "", f"expected the index of tar shards ('schema' {SCHEMA!r}), not {found!r}.")
    check_keys(content, path, "", "shards", "metadata")
    shards = []
    for number, entry in enumerate(checked_objects(content, "shards", path)):
        check_keys(entry, path, where := f"shards[{number}]", "file", "bytes", "samples")
        if not isinstance(entry["file"], str) or not _PLAIN_NAME.fullmatch(entry["file"]):
            name = describe(entry["file"])
            raise AnnotationFileError(path, where, f"'file' must be the name of an archive in this folder, not {name}.")
        if [type(entry[key]) for key in ("bytes", "samples")] != [int, int]:
            raise AnnotationFileError(path, where, f"'bytes' and 'samples' must be whole numbers; it has: {entry}.")
        shards.append(Shard(entry["file"], entry["bytes"], entry["samples"]))
    if not isinstance(content["metadata"], dict):
        raise AnnotationFileError(path, "metadata", f"expected an object, not {describe(content['metadata'])}.")
    return ShardIndex(folder, shards, _from_json(content["metadata"]))


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}"


@contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    """Open a file here, or at an address."""
    try:
        if is_remote(path):
            import fsspec

            with fsspec.open(path, "rb") as file:
                yield file  # pyright: ignore[reportReturnType]
        else:
            with open(path, "rb") as file:
                yield file
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"There is no '{without_password(path)}' (working directory: '{os.getcwd()}'). A folder of tar shards is "
            f"written by `detectron2 data shard` and has {_INDEX}, {_SAMPLES} and archives; give its path or address."
        ) from None


def _parsed(lines: Sequence[bytes], path: str, number: int) -> list[Any]:
    try:
        with paused_gc():
            return json.loads(b"[" + b",".join(lines) + b"]")  # at once, so that equal keys are one object
    except ValueError:
        pass
    for place, line in enumerate(lines, number + 1):
        try:
            json.loads(line)
        except ValueError as e:
            raise AnnotationFileError(path, f"line {place}", f"this is not JSON: {e}. Copy the file again.") from None
    raise AnnotationFileError(path, f"line {number + 1} and those after it", "these are not one value each.")


def _sizes_in(folder: str, names: Iterable[str]) -> dict[str, Any]:
    """Return the lengths of the files in a folder; None where a store does not tell."""
    if not is_remote(folder):
        with os.scandir(folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    import fsspec

    system, inner = fsspec.url_to_fs(folder)
    try:
        sizes = {os.path.basename(e["name"]): e.get("size") for e in system.ls(inner, detail=True)}
    except OSError:  # a store without lists
        sizes = {}
    for name in names:
        if name not in sizes and system.exists(f"{inner}/{name}"):
            sizes[name] = system.info(f"{inner}/{name}").get("size")
    return sizes


# Writing


def write_shards(
    records: Sequence[Mapping[str, Any]],
    metadata: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    shard_size: int | None = None,
    shard_bytes: int | None = None,
    seed: int | None = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> ShardIndex:
    """Write a data set into tar shards. Images are copied as they are, not decoded.

    Args:
        records: the data set in the standard format.
        metadata: of which the `METADATA_KEYS` go along.
        folder: a new or empty folder on this machine, which appears when all is written; shards are named after it.
        shard_size: images of a shard; by default 1000, or no limit where `shard_bytes` is given.
        shard_bytes: a shard ends before it has more bytes than this, but has one image at least.
        seed: of the order of the images, since those of one shard are read at one time in training; None keeps theirs.
        progress: passes the numbers of the images on and may show how far it is, such as `tqdm.tqdm`.

    Returns:
        the index.

    Raises:
        FileExistsError: there is something in the folder.
        FileNotFoundError: an image is missing.
        ValueError: there are no images, or a number is out of range.
        TypeError: a record holds what JSON cannot.
    """
    shard_size = 1000 if shard_size is None and shard_bytes is None else shard_size
    for name, number in (("shard_size", shard_size), ("shard_bytes", shard_bytes)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}.")
    if not len(records):
        raise ValueError("There are no images to write into shards.")
    folder = Path(folder)
    name = re.sub(r"[^\w-]+", "_", folder.resolve().name, flags=re.ASCII).strip("_") or "shard"
    order = range(len(records)) if seed is None else np.random.default_rng(seed).permutation(len(records)).tolist()
    keys = _keys_of(records)
    with write_folder_atomically(folder) as temporary, open(temporary / _SAMPLES, "wb") as lines:
        with closing(_ShardWriter(temporary / name, shard_size, shard_bytes)) as writer:
            for index in progress(order):
                files, record = _files_of(records[index], keys[index])
                places = writer.add(files)
                head = json.dumps({"shard": len(writer.shards) - 1, "files": places})
                lines.write(f'{head[:-1]}, "record": {record}}}\n'.encode())
        shards = writer.shards
        known = {key: metadata[key] for key in METADATA_KEYS if metadata.get(key) is not None}
        content = {
            "schema": SCHEMA,
            "num_images": len(records),
            "metadata": _to_json(known, "the metadata"),
            "shards": [vars(shard) for shard in shards],
        }
        (temporary / _INDEX).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return ShardIndex(os.fspath(folder), shards, known)


_File = tuple[str, str, bytes]  # key of the record, name, content


class _ShardWriter:
    """Writes archives, one after the other, and begins a new one where the next image does not fit."""

    def __init__(self, prefix: Path, shard_size: int | None, shard_bytes: int | None) -> None:
        self.shards: list[Shard] = []
        self._prefix, self._size, self._bytes = prefix, shard_size, shard_bytes
        self._archive: tarfile.TarFile | None = None

    def add(self, files: Sequence[_File]) -> dict[str, list[Any]]:
        """Add the files of an image, and return the place of each in its archive, which is the last of `shards`."""
        length = sum(tarfile.BLOCKSIZE + len(data) + -len(data) % tarfile.BLOCKSIZE for _, _, data in files)
        if self._archive is not None and self._is_full(self._archive, length):
            self.close()
        path = Path(f"{self._prefix}-{len(self.shards) - (self._archive is not None):06d}.tar")
        with full_disk_named(path):
            if self._archive is None:
                self._archive = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed below)
                self.shards.append(Shard(path.name, 0, 0))
            places = {}
            for key, name, data in files:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                places[key] = [name, self._archive.offset + tarfile.BLOCKSIZE, len(data)]
                self._archive.addfile(info, io.BytesIO(data))
        self.shards[-1].samples += 1
        return {key: place for key, place in places.items() if key in _FILE_KEYS}

    def _is_full(self, archive: tarfile.TarFile, more: int) -> bool:
        end = archive.offset + more + 2 * tarfile.BLOCKSIZE
        is_long = self._bytes is not None and -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE > self._bytes
        return is_long or self.shards[-1].samples == self._size

    def close(self) -> None:
        """Finish the archive in work."""
        if self._archive is not None:
            path = self._prefix.parent / self.shards[-1].file
            with full_disk_named(path):
                self._archive.close()
            self._archive = None
            self.shards[-1].bytes = path.stat().st_size


def _keys_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names for the files of the images, each another one, as near to those that they have as is safe."""
    keys: list[str] = []
    taken: set[str] = set()
    for number, record in enumerate(records):
        if not isinstance(record.get("file_name"), (str, os.PathLike)):
            raise ValueError(f"Image {number} (image id {record.get('image_id')!r}) has no 'file_name'.")
        stem = os.path.splitext(os.path.basename(os.fspath(record["file_name"])))[0]
        key = re.sub(r"[^\w-]", "_", stem, flags=re.ASCII)[-_LONGEST_KEY:] or "image"
        key = key if key not in taken else f"{key}_{number}"
        while key in taken:
            key += "_"
        taken.add(key)
        keys.append(key)
    return keys


def _files_of(record: Mapping[str, Any], key: str) -> tuple[list[_File], str]:
    """Return key, name and content of all files of an image, and as JSON its record without the names of files."""
    files = []
    for field, infix in _FILE_KEYS.items():
        if field in record:
            path = os.fspath(record[field])
            with PathManager.open(path, "rb") as file:
                data: Any = file.read()
            if not data:
                raise ValueError(f"'{path}' is empty; detectron2 data check finds all such files.")
            suffix = os.path.splitext(path)[1].lower()
            files.append((field, key + infix + (suffix if _SUFFIX.fullmatch(suffix) else ".img"), data))
    where = f"the image '{record['file_name']}'"
    rest = {name: _to_json(value, where, name) for name, value in record.items() if name not in _FILE_KEYS}
    if rest.get("height") is None or rest.get("width") is None:
        rest["height"], rest["width"] = image_size_hw(os.fspath(record["file_name"]))
    text, names = json.dumps(rest), json.dumps({field: name for field, name, _ in files})
    return [*files, ("json", f"{key}.json", f"{names[:-1]}, {text[1:]}".encode())], text


# Values that JSON has no form for


def _to_json(value: Any, where: str, key: str = "") -> Any:
    """Return plain values: pixels of a mask become run lengths, tables with numbers as keys become pairs."""
    if hasattr(value, "detach"):  # a tensor
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and key == "segmentation":
        value = encode_mask(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        if all(isinstance(name, str) for name in value):
            return {name: _to_json(v, where, name) for name, v in value.items()}
        return {"pairs": [[_to_json(name, where, key), _to_json(v, where, key)] for name, v in value.items()]}
    if isinstance(value, (list, tuple)):
        if set(map(type, value)) <= {float, int, str}:
            return list(value)
        return [_to_json(v, where, key) for v in value]
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, (str, bool, type(None), float)):
        return value
    if isinstance(value, (int, np.integer)):  # with enumerations
        return int(value)
    if isinstance(value, (np.floating, np.bool_)):
        return value.item()
    raise TypeError(f"'{key}' of {where} is a {type(value).__name__}, which JSON cannot hold; leave it out.")


def _from_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as they were: tables from pairs, and tuples of names that belong together."""
    known = {key: dict(v["pairs"]) if isinstance(v, dict) and "pairs" in v else v for key, v in metadata.items()}
    if "keypoint_flip_map" in known:
        known["keypoint_flip_map"] = [tuple(pair) for pair in known["keypoint_flip_map"]]
    if "keypoint_connection_rules" in known:
        known["keypoint_connection_rules"] = [(a, b, tuple(c)) for a, b, c in known["keypoint_connection_rules"]]
    return {key: known[key] for key in METADATA_KEYS if key in known}
