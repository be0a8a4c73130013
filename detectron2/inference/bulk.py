"""Prediction on very many images, by any number of processes, with results in shards.

The list of inputs is written once, into the folder of the run, and cut into shards of equal length. A shard is written
by one process, under its name only when it is whole; what is done is therefore what is there. A run that was killed, in
any way at any moment, goes on with the shards that are missing, also with another number of processes. No process holds
more than its images in work and the results of one shard.
"""

import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detectron2.data.images import decode_image, read_image
from detectron2.data.tar_members import TarMember, members_of
from detectron2.utils.file_io import atomic_write
from detectron2.utils.terminal import without_password

from .columns import columns_of, require_pyarrow, table_of
from .predictor import Predictor
from .results import Result
from .sources import IMAGE_SUFFIXES, Frame

__all__ = ["BulkRun", "list_images", "read_shards"]

_SCHEMA = "detectron2.shards/1"
_RUN, _INPUTS = "run.json", "inputs.jsonl"
_LISTS = (".txt", ".lst")
_FORMATS = ("jsonl", "parquet")
_SUFFIXES = (".jsonl", ".json", ".parquet")
_SECONDS_BETWEEN_LOOKS = 0.2

Entry = list[Any]
"""A path or an address alone; or an archive, the name of a file in it, where that begins, and its length in bytes."""


def list_images(sources: Iterable[str]) -> Iterator[Entry]:
    """List images one after another: memory does not grow with their number, only with that of the largest folder.

    Args:
        sources: images; folders, with all images in them and below; `.txt` and `.lst` files with one of all these on
            each line; `.tar` files (WebDataset and others), with the images in them; and addresses, which are not
            looked at.

    Yields:
        The path or address of an image as a list of one; of one in an archive `[archive, name, offset, bytes]`.

    Raises:
        FileNotFoundError: there is no such file or folder.
        ValueError: an archive is compressed, or damaged.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "a").mkdir()
        >>> for name in ("2.jpg", "a/1.png", "notes.md"):
        ...     (folder / name).touch()
        >>> [os.path.relpath(path, folder) for [path] in list_images([str(folder)])]
        ['2.jpg', 'a/1.png']
    """
    for source in sources:
        if "://" in source:
            yield [source]
        elif os.path.isdir(source):
            yield from ([path] for path in _images_below(source, ()))
        elif not os.path.isfile(source):
            raise FileNotFoundError(f"No such file or folder: {source}")
        elif source.lower().endswith(_LISTS):
            with open(source, encoding="utf-8") as file:
                yield from list_images(line.strip() for line in file if line.strip())
        elif source.lower().endswith(".tar"):
            yield from _images_in_archive(source)
        else:
            yield [source]


def _images_below(folder: str, above: tuple[str, ...]) -> Iterator[str]:
    """Images in a folder in the order of their names, then those in the folders below it."""
    real = os.path.realpath(folder)
    if real in above:  # a link that leads back
        return
    with os.scandir(folder) as entries:
        found = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
    yield from (os.path.join(folder, n) for n, is_dir in found if not is_dir and n.lower().endswith(IMAGE_SUFFIXES))
    for name, is_dir in found:
        if is_dir:
            yield from _images_below(os.path.join(folder, name), (*above, real))


def _images_in_archive(path: str) -> Iterator[Entry]:
    for member in members_of(path):
        if member.name.lower().endswith(IMAGE_SUFFIXES):
            yield list(member)


class BulkRun:
    """A folder in which the results of one list of images come together.

    The first process of a run, the one of rank 0, makes the list; the others wait for it. In the folder are then
    `run.json`, which says what the run is of, `inputs.jsonl`, the list, and `part-000000.jsonl` and so on.

    Args:
        folder: of the run.
        sources: what `list_images` takes. A run that goes on has its list already.
        shard_size: images of a shard.
        format: "jsonl", a line of JSON for each image, what `Result.to_dict` returns; or "parquet", the same as a
            table, with the package `pyarrow`.
        asked: what must be the same for a run that goes on, such as the weights.
        resume: whether to go on with what is in the folder.
        rank: number of this process.
        world_size: how many processes there are.
        launch: what all processes of one start have in common; it lets a process that is started again go on.
        wait: seconds after which a process gives up to wait for the list.

    Raises:
        FileExistsError: the folder has a run in it, and `resume` is not set.
        FileNotFoundError: there is no such input.
        TimeoutError: there is no list after `wait` seconds.
        ValueError: an argument is impossible, there are no images, or the run in the folder is of something else.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from detectron2 import Predictor
        >>> place = tempfile.mkdtemp()
        >>> for i in range(3):
        ...     Image.new("RGB", (64, 48)).save(f"{place}/{i}.png")
        >>> changes = ["INPUT.MIN_SIZE_TEST", 64, "MODEL.WEIGHTS", ""]
        >>> name = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
        >>> predictor = Predictor(name, device="cpu", overrides=changes, allow_random_weights=True)
        >>> run = BulkRun(f"{place}/out", [place], shard_size=2)
        >>> run.predict(predictor)
        3
        >>> [os.path.basename(row["file"]) for row in read_shards(f"{place}/out")]
        ['0.png', '1.png', '2.png']
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        sources: Sequence[str],
        *,
        shard_size: int = 500,
        format: Literal["jsonl", "parquet"] = "jsonl",
        asked: Mapping[str, Any] | None = None,
        resume: bool = False,
        rank: int = 0,
        world_size: int = 1,
        launch: str = "",
        wait: float = 600.0,
    ):
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size!r}.")
        if format not in _FORMATS:
            raise ValueError(f"format must be one of {', '.join(_FORMATS)}, got {format!r}.")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0..{world_size - 1}, got {rank!r}.")
        if format == "parquet":
            require_pyarrow()
        self.folder, self.rank, self.world_size = Path(folder), rank, world_size
        own = {"asked": json.loads(json.dumps(asked or {})), "shard_size": shard_size, "format": format}
        known = self._known(resume, launch)
        if known is None and rank == 0:
            known = self._begin(sources, own, launch)
        until = time.monotonic() + wait
        while known is None:
            if time.monotonic() > until:
                raise TimeoutError(f"The process of rank 0 has not written {self.folder / _RUN} in {wait:g} seconds.")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            known = self._known(resume, launch)
        old, new = ({**run, **run["asked"], "asked": 0} for run in (known, own))
        if changed := [name for name in {**own, **known["asked"], **own["asked"]} if old.get(name) != new.get(name)]:
            parts = (f"{name} {old.get(name)!r} (now {new.get(name)!r})" for name in changed)
            raise ValueError(
                f"The results in {self.folder} were made with {', '.join(parts)}. Go on with the same settings, or "
                "choose another folder."
            )
        self.num_images: int = known["num_images"]
        self._shard_size, self._format = shard_size, format
        self.num_shards = -(-self.num_images // shard_size)

    def _known(self, resume: bool, launch: str) -> dict[str, Any] | None:
        """What is written of the run in the folder, if this process may go on with it."""
        try:
            with open(self.folder / _RUN, encoding="utf-8") as file:
                known = json.load(file)
        except FileNotFoundError:
            return None
        if known.get("schema") != _SCHEMA:
            raise ValueError(f"{self.folder / _RUN} is not of a run with shards; use another folder.")
        if resume or (launch and known["launch"] == launch):
            return known
        if self.rank > 0:  # the first process will say so
            return None
        raise FileExistsError(
            f"{self.folder} has the results of a run in it: go on with --resume, or use another folder."
        )

    def _begin(self, sources: Sequence[str], own: Mapping[str, Any], launch: str) -> dict[str, Any]:
        count, was_there = 0, self.folder.exists()
        try:
            with atomic_write(self.folder / _INPUTS, "w") as file:
                for entry in list_images(sources):
                    file.write(json.dumps(entry) + "\n")
                    count += 1
                if not count:
                    raise ValueError(f"There are no images in {', '.join(sources) or 'an empty list'}.")
        except BaseException:
            if not was_there:
                with suppress(OSError):
                    self.folder.rmdir()
            raise
        known = {"schema": _SCHEMA, "num_images": count, "launch": launch, **own}
        with atomic_write(self.folder / _RUN, "w") as file:
            json.dump(known, file, indent=2)
        return known

    def path_of(self, number: int) -> Path:
        """Return the path of a shard, which exists once it is whole."""
        return self.folder / self._name_of(number)

    def _name_of(self, number: int) -> str:
        return f"part-{number:06d}.{self._format}"

    def predict(
        self, predictor: Predictor, *, confidence: float | None = None, report: Callable[[Result], None] | None = None
    ) -> int:
        """Predict on all images of this process whose shards are missing.

        Args:
            predictor: the model. It reads `workers` images at a time, ahead of the model.
            confidence: the least score of objects that are written; None for all that the model gives.
            report: is called with each result.

        Returns:
            On how many images was predicted. Images that cannot be read count; their rows have an `error`.
        """
        missing = self.missing()
        with ExitStack() as stack:
            frames = _read_ahead(self._entries(missing), predictor, stack)
            results = iter(predictor.predict_frames(frames, on_error="keep"))
            stack.callback(results.close)  # pyright: ignore[reportAttributeAccessIssue] (a generator)
            for number in missing:
                self._write(number, self._rows(number, results, confidence, report))
        return sum(map(self.length_of, missing))

    def missing(self) -> list[int]:
        """Return the numbers of the shards that this process has to write yet."""
        folder = os.fspath(self.folder)  # pathlib enters each path into Python's table of names, which then grows
        names = ((n, self._name_of(n)) for n in range(self.rank, self.num_shards, self.world_size))
        return [n for n, name in names if not os.path.exists(os.path.join(folder, name))]

    def length_of(self, number: int) -> int:
        """Return how many images a shard has."""
        return min(self._shard_size, self.num_images - number * self._shard_size)

    def _entries(self, missing: Sequence[int]) -> Iterator[tuple[int, Entry]]:
        """Numbers and entries of all images in some shards."""
        wanted = iter(missing)
        number = next(wanted, None)
        with open(self.folder / _INPUTS, encoding="utf-8") as file:
            for index, line in enumerate(file):
                if number is None:
                    return
                first = number * self._shard_size
                if index >= first:
                    yield index, json.loads(line)
                if index + 1 == first + self.length_of(number):
                    number = next(wanted, None)

    def _rows(
        self, number: int, results: Iterator[Result], confidence: float | None, report: Callable[[Result], None] | None
    ) -> Iterator[dict[str, Any]]:
        for index in range(number * self._shard_size, number * self._shard_size + self.length_of(number)):
            result = next(results)
            assert result.index == index
            if confidence is not None and result.error is None:
                result = result.filter(confidence)
            if report is not None:
                report(result)
            yield result.to_dict()

    def _write(self, number: int, rows: Iterator[dict[str, Any]]) -> None:
        """Write a shard under another name first, which a run that goes on overwrites."""
        path = self.path_of(number)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                if self._format == "jsonl":
                    for row in rows:
                        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
                        file.write(text.encode(errors="backslashreplace") + b"\n")  # names that are not Unicode
                else:
                    _write_table(file, list(rows))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _read_ahead(entries: Iterable[tuple[int, Entry]], predictor: Predictor, stack: ExitStack) -> Iterator[Frame]:
    """Frames in order; some threads read those that come next."""
    read = partial(_frame_of, image_format=predictor.image_format, exif=predictor.exif)
    workers = max(1, predictor.workers)
    pool = ThreadPoolExecutor(workers)
    stack.callback(pool.shutdown, cancel_futures=True)
    ahead = 2 * max(workers, predictor.batch_size)

    def frames() -> Iterator[Frame]:
        waiting: deque[Future[Frame]] = deque()
        for index, entry in entries:
            waiting.append(pool.submit(read, index, entry))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    return frames()


def _frame_of(index: int, entry: Entry, image_format: str | None, exif: str) -> Frame:
    """Read an image, wherever it is; an error is a part of the frame."""
    where = without_password(entry[0])
    name = where if len(entry) == 1 else f"{where}/{entry[1]}"
    try:
        return Frame(_read(entry, name, image_format, exif), name, None if "://" in where else name, index)
    except (OSError, ValueError, TypeError, ImportError) as error:
        return Frame(None, name, None, index, error=error)


def _read(entry: Entry, name: str, image_format: str | None, exif: str) -> np.ndarray:
    if len(entry) > 1:
        return decode_image(TarMember(*entry).read(), image_format, exif, name)
    if "://" not in entry[0]:
        return read_image(entry[0], image_format, exif)
    import fsspec

    with fsspec.open(entry[0], "rb") as file:
        return decode_image(io.BytesIO(file.read()), image_format, exif, name)  # pyright: ignore


def _write_table(file: Any, rows: list[dict[str, Any]]) -> None:
    names = [row["file"].encode(errors="backslashreplace").decode() for row in rows]
    table = table_of({"index": [row["index"] for row in rows], **columns_of(rows), "file": names})
    table = table.replace_schema_metadata({"schema": rows[0]["schema"]})
    require_pyarrow().parquet.write_table(table, file, compression="zstd")


def read_shards(folder: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Read all results that a run has written so far, or those that another engine has.

    Args:
        folder: of a `BulkRun`; or with files `.parquet`, and `.jsonl` and `.json` with an object in each line, into
            which an engine such as Ray Data has written what `Predictor.for_batches` returns.

    Yields:
        A row for each image: what `Result.to_dict` returns, for another engine without `schema`, `index` and `time`. Of
        a `BulkRun` they are in the order of the list. From Parquet a row has all keys of its kind, some with None.

    Raises:
        FileNotFoundError: there is no run in the folder, and no file of another engine.
        ValueError: a file is not of such results.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "run.json").write_text('{"format": "jsonl"}')
        >>> _ = (folder / "part-000000.jsonl").write_text('{"file": "a.jpg", "objects": []}')
        >>> [row["file"] for row in read_shards(folder)]
        ['a.jpg']
    """
    run, others = Path(folder, _RUN), "*"
    if run.exists():
        with open(run, encoding="utf-8") as file:
            others = f"part-*.{json.load(file)['format']}"
    paths = sorted(path for path in Path(folder).glob(others) if path.suffix in _SUFFIXES and path.name[0] not in "._")
    if not paths and not run.exists():
        raise FileNotFoundError(f"There are no results in {folder}: neither {_RUN} nor files {', '.join(_SUFFIXES)}.")
    for path in paths:
        for row in _rows_of(path):
            if "file" not in row:
                raise ValueError(f"{path} does not have results: expected rows with 'file', got {', '.join(row)}.")
            yield row


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        yield from require_pyarrow().parquet.read_table(path).to_pylist()
        return
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not an object of JSON: {error}.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is not an object of JSON, but {type(row).__name__}.")
            yield row
