"""Write results into a folder as they come, such that nothing that is finished is ever lost.

`predictions.jsonl` is the journal: a line for each image, written when all files of the image are there. A process that
is killed leaves a journal that ends with the last finished image. All tables are made from it at the end, one line at
a time: memory does not grow with the results, only by the names of the images.
"""

import contextlib
import csv as csv_module
import glob
import io
import itertools
import json as json_module
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from detectron2.utils.file_io import atomic_write

from .drawing import draw
from .results import ROW_KEYS, Result, object_rows, panoptic_categories

__all__ = ["ResultWriter", "written_files"]

logger = logging.getLogger(__name__)

_SCHEMA = "detectron2.predictions/1"
_PICTURES = ("png", "jpg", "svg", "pdf", "none")
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_JOURNAL = "predictions.jsonl"
_ours: set[tuple[int, int, int]] = set()  # journals that this process has locked, by process, device and number
_PENDING = ".predictions.pending"
_TABLES = ("predictions.json", "predictions.csv", "counts.csv", "areas.csv", "panoptic.json", "semantic.json")
_VIDEO_SUFFIX = ".mp4"
# In names of files that are made of the names of classes and addresses.
_UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*\\/]+')


class ResultWriter:
    """Writes results into a folder, and goes on where an earlier run was stopped.

    What it writes, where a model gives such things:

    - a picture of each image, `<name>.<save>`, in the same sub-folders as the image; of a video one video, `.mp4`;
    - `predictions.json`: COCO results with `file_name`, `height`, `width`, `category_name` (see `Result.to_coco`), of
      videos also `frame`, from 0, and `time` in seconds;
    - `predictions.csv`: a row for each object (`object_rows`), and `counts.csv`: a row for each image with the number
      of objects of each class; for semantic segmentation `areas.csv` with pixels in their place;
    - `panoptic.json` and `panoptic/*.png`: COCO's panoptic format; `semantic.json` and `semantic/*.png`: the class of
      each pixel, 255 (of more than 255 classes 65535) where there is none;
    - `crops/<class>/<image>_<object>.png`: the part of the image in each box;
    - `predictions.jsonl`: a first line with `schema` and what was `asked`, then a line for each image: what
      `Result.to_dict` returns, without masks; `image_id`; `files` that were written for it; and COCO `records`.

    Each file appears under its name only when it is complete. No file that was there before is written over, but for
    those of an earlier run: such as an image with the name that a picture would have, which gets `_2`. After Ctrl-C, an
    error or a kill, all that was finished is there; the tables are written at the end of the `with` block, whatever
    ends it, and after a kill at the end of the run that resumes. A video counts as finished when the next image comes
    or the block ends without an error; else, or if it is damaged, a run that resumes makes it again. One thread at a
    time may use a writer, and one writer a folder.

    Args:
        folder: where to write.
        save: pictures as `"png"`, `"jpg"`, `"svg"`, `"pdf"`, or `"none"`. A video is written for all but `"none"`.
        json: write `predictions.json`.
        csv: write the CSV files.
        crops: write the crops.
        maps: write the PNG files and JSON files of panoptic and semantic segmentation.
        resume: keep what an earlier run with the same settings wrote, and skip its images (`is_done`).
        replace: without `resume`, remove the files that an earlier run wrote; False to refuse instead.
        image_ids: `image_id` of each image, by its path; None for the position in the input, from 1. Give it where
            only the images that are left are predicted on. An id that is taken is not given twice.
        category_ids: as for `Result.to_coco`.
        confidence: the least score of objects; None for all that the model gives.
        classes: names or contiguous ids of the classes to keep; None for all.
        asked: what else must be the same for a run that resumes, such as the model; JSON must take it.
        options: those of `Result.plot`.

    Raises:
        ValueError: an argument is none of these, or the earlier run asked for something else.
        FileExistsError: there is an earlier run, with `resume` and `replace` both False; or another process writes.

    Example:
        >>> with ResultWriter("predictions", csv=True, resume=True) as writer:  # doctest: +SKIP
        ...     for result in predictor([path for path in paths if not writer.is_done(path)]):
        ...         writer.write(result)
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        save: str = "png",
        json: bool = True,
        csv: bool = False,
        crops: bool = False,
        maps: bool = True,
        resume: bool = False,
        replace: bool = True,
        image_ids: Mapping[str, int | str] | None = None,
        category_ids: Mapping[Any, int | str] | None = None,
        confidence: float | None = None,
        classes: Sequence[str | int] | None = None,
        asked: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ):
        if save not in _PICTURES:
            raise ValueError(f"save is one of {', '.join(_PICTURES)}, got {save!r}.")
        self.folder = Path(folder)
        self.done: set[str] = set()
        """What is finished: absolute paths of images and videos, or else addresses, or else names."""
        self.failed: dict[str, str] = {}
        """Why images of this run could not be read, by name."""
        self.image_count = 0
        """Images and frames in the folder, with those of earlier runs."""
        self.object_count = 0
        """Objects in the folder, or segments or classes of pixels where the model gives no objects."""
        self.class_counts: Counter[str] = Counter()
        """How many of those there are of each class; of classes of pixels in how many images each is."""
        self.identities: set[tuple[str, int]] = set()
        """The objects that are tracked through videos: the video, and the number in it."""
        self._save, self._crops, self._maps = save, crops, maps
        self._json, self._csv = json, csv
        self._image_ids, self._category_ids = image_ids, category_ids
        self._confidence, self._classes = confidence, classes
        self._options = dict(options or {})
        self._asked = _as_json(
            {
                "save": save,
                "crops": crops,
                "maps": maps,
                "confidence": confidence,
                "classes": None if classes is None else list(classes),
                "category_ids": None if category_ids is None else {str(k): v for k, v in category_ids.items()},
                "options": self._options,
                **(asked or {}),
            }
        )
        self._used_ids: set[Any] = set()
        self._stems: dict[str, int] = {}  # in lower case, with the last number that was tried
        self._journal: IO[bytes] | None = None
        self._has_header = False
        self._video: _Video | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / _JOURNAL
        if path.exists():
            with open(path, "rb") as file:
                _hold(file, self.folder)
            for name in (*_TABLES, _JOURNAL):  # of a process that was killed while it wrote them
                for begun in glob.glob(f"{glob.escape(str(self.folder / name))}.*.tmp"):
                    os.unlink(begun)
        if path.exists() and not resume:
            self._remove_earlier(replace)
        elif path.exists():
            self._take_up(path)
        self._remove_pending()
        if resume:  # tables that are there are not to stay behind
            self._json = json or (self.folder / "predictions.json").exists()
            self._csv = csv or (self.folder / "predictions.csv").exists()

    def __enter__(self) -> "ResultWriter":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close(is_complete=kind is None)

    @property
    def tables(self) -> list[str]:
        """Names of the tables in the folder, which are there when the `with` block has ended."""
        return [name for name in _TABLES if (self.folder / name).exists()]

    def is_done(self, image: Any) -> bool:
        """Whether an earlier run, or this one, has finished an image or a video, given as a path or a `Frame`."""
        if isinstance(image, (str, os.PathLike)):
            name = os.fspath(image)
            return (name if "://" in name else os.path.abspath(name)) in self.done
        return (_key_of(image) if image.time is None else _group_of(image)) in self.done

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, result: Result) -> None:
        """Write what belongs to one image, and then its line. An image that is done is skipped.

        A result with an `error` is only noted in `failed`; a run that resumes tries it again.
        """
        frame = result.frame
        if result.error is not None:
            self.failed[result.name] = str(result.error)
            if self._video is not None and self._video.group == _group_of(frame):
                self._finish_video(is_whole=False)
            return
        group = None if result.time is None else _group_of(frame)
        key = _key_of(frame) if group is None else group
        if self._video is not None and self._video.group != group:
            self._finish_video()
        if key in self.done:
            return
        if self._confidence is not None or self._classes is not None:
            result = result.filter(self._confidence, self._classes)
        if group is not None and self._video is None:
            stem = self._free_stem(frame, [_VIDEO_SUFFIX] if self._save != "none" else [], [""])
            self._video = _Video(group, stem, self.folder / f"{stem}{_VIDEO_SUFFIX}")
        if self._video is not None:
            stem = f"{self._video.stem}/{self._video.count:06d}"
            self._video.count += 1
        else:
            suffixes = [] if self._save == "none" else [f".{self._save}"]
            stem = self._free_stem(frame, suffixes, [".png"] if self._maps else [])
        files, line = self._plan(result, stem)
        self._open_journal()  # before any file, so that another process knows of this one
        self._note_pending(key, list(files))  # so that a run that resumes knows whose they are
        for name, write in files.items():
            write(self.folder / name)
        if self._video is not None and self._save != "none":
            self._video.write(draw(result, **self._options).get_image(), result.time)
        self._append({**line, "key": key, "video": group, "stem": stem, "files": list(files)}, result)
        if group is None:
            self.done.add(key)
        self.image_count += 1
        self.object_count += len(result)
        self.class_counts.update(result.names)
        self.identities.update((key, number) for number in result.track_ids or ())

    def _plan(self, result: Result, stem: str) -> tuple[dict[str, Callable[[Path], None]], dict[str, Any]]:
        """The files of an image, with what writes them, and the line for the journal."""
        files: dict[str, Callable[[Path], None]] = {}
        image_id = self._image_id(result)
        line = {**result.to_dict(masks=None), "image_id": image_id}
        if self._video is None and self._save != "none":
            files[f"{stem}.{self._save}"] = draw(result, **self._options).save
        if result.instances is not None:
            line["records"] = result.to_coco(image_id, self._category_ids)
            if self._video is not None:
                place = {"frame": self._video.count - 1, "time": result.time}
                line["records"] = [{**record, **place} for record in line["records"]]
        if self._maps and result.panoptic_seg is not None:
            names = [*result.thing_classes, *result.stuff_classes]
            record, png = result.to_coco_panoptic(image_id, self._ids_of_all(names))
            line["panoptic"] = {**record, "file_name": f"{stem}.png"}
            files[f"panoptic/{stem}.png"] = _writer_of(png)
        elif self._maps and result.sem_seg is not None:
            line["pixel_records"] = result.to_coco_sem_seg(self._ids_of_all(result.stuff_classes))
            files[f"semantic/{stem}.png"] = _writer_of(_label_png(result))
        if self._crops and line["objects"]:
            image = result.image_rgb
            for number, entry in enumerate(line["objects"]):
                part = _crop(image, entry["box_xyxy"])
                if part.size:
                    folder = _UNSAFE.sub("_", entry["class"]).strip(" .") or f"class_{entry['class_id']}"
                    files[f"crops/{folder}/{stem}_{number}.png"] = _writer_of(_png(part))
        return files, line

    def _ids_of_all(self, names: Sequence[str]) -> Mapping[Any, int | str] | None:
        """The `category_ids` if they are those of all these classes; those of objects alone are none of segments."""
        return self._category_ids if self._category_ids and all(name in self._category_ids for name in names) else None

    def _image_id(self, result: Result) -> int | str:
        """The id that was given for this image, or its position, or the next number that is free."""
        known = self._image_ids or {}
        for name in (result.path, result.frame.source, result.name):
            if name is not None and name in known and result.time is None and known[name] not in self._used_ids:
                return known[name]
        number = result.index + 1
        if number in self._used_ids:
            number = max(i for i in self._used_ids if isinstance(i, int)) + 1
        return number

    def _free_stem(self, frame: Any, pictures: Sequence[str], maps: Sequence[str]) -> str:
        """A name for the files of an image, in its sub-folder, that no file has."""
        wanted = _stem_of(frame)
        for number in itertools.count(self._stems.get(wanted.lower(), 0) + 1):
            stem = wanted if number == 1 else f"{wanted}_{number}"
            places = [f"{stem}{suffix}" for suffix in pictures]
            places += [f"{kind}/{stem}{suffix}" for kind in ("panoptic", "semantic") for suffix in maps]
            is_taken = number > 1 and stem.lower() in self._stems
            if not is_taken and not any(os.path.lexists(self.folder / place) for place in places):
                self._stems[wanted.lower()] = number
                self._stems.setdefault(stem.lower(), 1)
                return stem
        raise AssertionError("there is no end of numbers")

    def _finish_video(self, is_whole: bool = True) -> None:
        """Complete the video of the frames so far, and say so in the journal, unless it is to be tried again."""
        video, self._video = self._video, None
        if video is None:
            return
        video.close()
        files = [] if self._save == "none" else [video.path.relative_to(self.folder).as_posix()]
        self._append({"finished" if is_whole else "video": video.group, "stem": video.stem, "files": files}, None)
        if is_whole:
            self.done.add(video.group)

    # -- the journal --------------------------------------------------------------------------------------------------

    def _append(self, line: dict[str, Any], result: Result | None) -> None:
        """Write a line, and before the first one what was asked for."""
        self._open_journal()
        if not self._has_header and result is not None:
            header: dict[str, Any] = {"schema": _SCHEMA, "asked": self._asked, "classes": result.thing_classes}
            header["pixel_classes"] = result.stuff_classes
            header["panoptic_categories"] = self._panoptic_categories(result)
            self._write_line(header)
            self._has_header = True
        self._write_line(line)
        if "image_id" in line:
            self._used_ids.add(line["image_id"])

    def _open_journal(self) -> None:
        if self._journal is None:
            journal = open(self.folder / _JOURNAL, "ab")  # noqa: SIM115 (open as long as the writer is)
            _hold(journal, self.folder)
            self._journal = journal

    def _write_line(self, line: dict[str, Any]) -> None:
        assert self._journal is not None
        text = json_module.dumps(line, allow_nan=False, ensure_ascii=False, default=_plain_number)
        self._journal.write(text.encode(errors="backslashreplace") + b"\n")  # names of files that are not Unicode
        self._journal.flush()

    def _panoptic_categories(self, result: Result) -> list[dict[str, Any]]:
        """The categories of `panoptic.json`, with the ids that are written."""
        if result.panoptic_seg is None:
            return []
        categories = panoptic_categories(result.metadata)
        ids = self._ids_of_all([*result.thing_classes, *result.stuff_classes])
        return categories if ids is None else [{**c, "id": ids[c["name"]]} for c in categories]

    def _lines(self) -> Iterator[dict[str, Any]]:
        """The lines of the journal about images, one by one; a line that was cut off ends them."""
        path = self.folder / _JOURNAL
        if not path.exists():
            return
        with open(path, "rb") as file:
            for _, line in _read_lines(file, path):
                if "key" in line:
                    yield line

    def _header(self) -> dict[str, Any]:
        path = self.folder / _JOURNAL
        if path.exists():
            with open(path, "rb") as file:
                for _, line in _read_lines(file, path):
                    return line
        return {}

    def _take_up(self, path: Path) -> None:
        """Read what an earlier run finished, and cut off what it did not."""
        begun: set[str] = set()
        length = 0
        with open(path, "rb") as file:
            for end, line in _read_lines(file, path):
                length = end
                if "asked" in line:
                    self._check_same(line["asked"])
                    self._has_header = True
                elif "finished" in line:
                    self.done.add(line["finished"])
                    self._stems[line["stem"].lower()] = 1
                    begun.discard(line["finished"])
                elif line.get("video") is not None:
                    begun.add(line["video"])
                else:
                    self._take_line(line)
        if length < path.stat().st_size:
            with open(path, "r+b") as file:
                file.truncate(length)
        if begun:
            self._cut_videos(path, begun)
        for line in self._lines():
            if line.get("video") is not None:
                self._take_line(line)

    def _take_line(self, line: dict[str, Any]) -> None:
        """Count a finished image, or frame of a finished video."""
        self.done.add(line["key"])
        self._used_ids.add(line["image_id"])
        self.image_count += 1
        kinds = (line.get("objects"), line.get("segments"), line.get("pixel_classes"))
        found = next((k for k in kinds if k is not None), [])
        self.object_count += len(found)
        self.class_counts.update(entry["class"] for entry in found)
        self.identities.update((line["key"], entry["track_id"]) for entry in found if "track_id" in entry)
        if line.get("video") is None:
            self._stems.setdefault(line["stem"].lower(), 1)

    def _check_same(self, asked: Mapping[str, Any]) -> None:
        """Refuse to go on with other settings."""
        keys = [key for key in {**asked, **self._asked} if asked.get(key) != self._asked.get(key)]
        if keys:
            parts = [f"{key} {asked.get(key)!r} (now {self._asked.get(key)!r})" for key in keys]
            raise ValueError(
                f"The results in {self.folder} were made with {', '.join(parts)}. Go on with the same settings, choose "
                "another folder, or start again without resume."
            )

    def _cut_videos(self, path: Path, groups: set[str]) -> None:
        """Take the frames of videos that were not finished, and their files, out of the journal."""
        with open(path, "rb") as file, atomic_write(path) as kept:
            for _, line in _read_lines(file, path):
                if line.get("video") in groups:
                    self._remove_files(line["files"])
                else:
                    text = json_module.dumps(line, ensure_ascii=False)
                    kept.write(text.encode(errors="backslashreplace") + b"\n")

    # -- files of earlier runs ----------------------------------------------------------------------------------------

    def _remove_earlier(self, replace: bool) -> None:
        """Remove what an earlier run wrote, or refuse to."""
        count = sum(1 for _ in self._lines())
        if not replace:
            raise FileExistsError(
                f"{self.folder} has the results of an earlier run ({count} images). Resume it, choose another folder, "
                "or replace them."
            )
        logger.warning(f"The results of an earlier run in {self.folder} ({count} images) are replaced.")
        self._remove_pending()
        path = self.folder / _JOURNAL
        with open(path, "rb") as file:
            for _, line in _read_lines(file, path):
                self._remove_files(line.get("files", []))
        for name in (*_TABLES, _JOURNAL):
            (self.folder / name).unlink(missing_ok=True)

    def _note_pending(self, key: str, files: list[str]) -> None:
        """Write down which files are being written."""
        if self._video is not None and self._save != "none":
            files = [*files, self._video.path.relative_to(self.folder).as_posix()]
        (self.folder / _PENDING).write_text(json_module.dumps([key, files]), encoding="utf-8")

    def _remove_pending(self) -> None:
        """Remove the files of an image that was being written when the process ended."""
        path = self.folder / _PENDING
        if not path.exists():
            return
        try:
            key, files = json_module.loads(path.read_text(encoding="utf-8"))
        except ValueError:  # it was being written itself, and no file of the image was begun
            key, files = "", []
        if key not in self.done:
            self._remove_files(files)
        path.unlink()

    def _remove_files(self, names: Sequence[str]) -> None:
        """Remove files in the folder, and what was begun of them; a journal of others may name files elsewhere."""
        root = self.folder.resolve()
        for name in names:
            path = self.folder / name
            if ".." in path.parts or not path.parent.resolve().is_relative_to(root):
                raise ValueError(f"{self.folder / _JOURNAL} names {name!r}, which is not in its folder; move it away.")
            hidden = path.parent / f".{path.stem}"  # as which a video is begun
            begun = [f"{glob.escape(str(path))}.*.tmp", f"{glob.escape(str(hidden))}.*{path.suffix}"]
            for other in [path, *(Path(p) for pattern in begun for p in glob.glob(pattern))]:
                other.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self.folder or (parent.is_dir() and any(parent.iterdir())):
                    break
                if parent.is_dir():
                    parent.rmdir()

    # -- tables -------------------------------------------------------------------------------------------------------

    def close(self, is_complete: bool = True) -> None:
        """Write the tables of all that is finished. `is_complete` is False when a video was not read to its end."""
        try:
            if is_complete:
                self._finish_video()
            elif self._video is not None:
                self._video.close()
        finally:
            with contextlib.ExitStack() as stack:
                if self._journal is not None:  # whose lock keeps other processes away
                    stack.callback(self._journal.close)
                    self._journal = None
                self._write_tables()
        if is_complete:
            (self.folder / _PENDING).unlink(missing_ok=True)

    def _write_tables(self) -> None:
        header = self._header()
        kinds = Counter(kind for line in self._lines() for kind in ("panoptic", "pixel_records") if kind in line)
        if self._json:
            records = (record for line in self._lines() for record in line.get("records", []))
            with atomic_write(self.folder / "predictions.json", "w") as f:
                _write_list(f, records)
                f.write("\n")
        if self._maps and kinds["panoptic"]:
            with atomic_write(self.folder / "panoptic.json", "w") as f:
                f.write('{"images": ')
                _write_list(f, (_image_entry(line) for line in self._lines() if "panoptic" in line))
                f.write(',\n"annotations": ')
                _write_list(f, (line["panoptic"] for line in self._lines() if "panoptic" in line))
                f.write(f',\n"categories": {json_module.dumps(header["panoptic_categories"], ensure_ascii=False)}}}\n')
        if self._maps and kinds["pixel_records"]:
            records = (record for line in self._lines() for record in line.get("pixel_records", []))
            with atomic_write(self.folder / "semantic.json", "w") as f:
                _write_list(f, records)
                f.write("\n")
        if self._csv:
            with atomic_write(self.folder / "predictions.csv", "w") as f:
                rows = csv_module.DictWriter(f, ROW_KEYS, lineterminator="\n")
                rows.writeheader()
                rows.writerows(row for line in self._lines() for row in object_rows(line))
            self._write_counts(header)

    def _write_counts(self, header: Mapping[str, Any]) -> None:
        """Write a row for each image, a column for each class that the model has, or that was found."""
        for file_name, known, is_pixels in (
            ("counts.csv", header.get("classes", []), False),
            ("areas.csv", header.get("pixel_classes", []), True),
        ):
            found = {n for line in self._lines() if _is_label_line(line) == is_pixels for n in _counts_of(line)}
            if is_pixels and not found:
                continue
            names = [*known, *sorted(found - set(known))]
            with atomic_write(self.folder / file_name, "w") as f:
                rows = csv_module.writer(f, lineterminator="\n")
                rows.writerow(["file", "index", "time", *names])
                for line in self._lines():
                    if _is_label_line(line) == is_pixels:
                        counts = _counts_of(line)
                        rows.writerow([line["file"], line["index"], line["time"], *(counts[n] for n in names)])


class _Video:
    """The video that is being written."""

    def __init__(self, group: str, stem: str, path: Path):
        self.group = group
        self.stem = stem
        self.path = path
        self.count = 0
        self._writer: Any = None

    def write(self, picture: np.ndarray, time: float | None) -> None:
        """Append a picture, an RGB image."""
        if self._writer is None:
            from .video import VideoWriter

            self._writer = VideoWriter(self.path, image_format="RGB")
        self._writer.write(picture, time)

    def close(self) -> None:
        """Give the file its name."""
        if self._writer is not None:
            self._writer.close()


def written_files(folder: str | os.PathLike) -> set[str]:
    """Return the real paths of the files that an earlier run wrote for its images: the next run does not read them.

    Args:
        folder: that of a `ResultWriter`; it need not exist.

    Returns:
        The paths; none without an earlier run.

    Example:
        >>> written_files("no/such/folder")
        set()
    """
    path = Path(folder, _JOURNAL)
    if not path.is_file():
        return set()
    with open(path, "rb") as file:
        return {
            os.path.realpath(os.path.join(folder, name))
            for _, line in _read_lines(file, path)
            for name in line.get("files", [])
        }


def _key_of(frame: Any) -> str:
    """What an image is known by: its path, or else its address or name."""
    if frame.path is not None:
        return os.path.abspath(frame.path)
    return str(frame.source if "://" in (frame.source or "") else frame.name)


def _group_of(frame: Any) -> str:
    """What the video of a frame is known by."""
    return os.path.abspath(frame.path) if frame.path is not None else str(frame.source or "camera")


def _stem_of(frame: Any) -> str:
    """The wanted name of the files of an image: its path below the folder that it was found in, without the ending."""
    path, source = frame.path, frame.source or ""
    if path is not None:
        is_below = os.path.isdir(source) and Path(path).is_relative_to(source)
        name = Path(path).relative_to(source).as_posix() if is_below else os.path.basename(path)
        return os.path.splitext(name)[0]
    name = os.path.basename(urlsplit(source).path) if "://" in source else frame.name
    if frame.time is not None:
        name = source or "camera"
    return _UNSAFE.sub("_", os.path.splitext(name)[0]).replace(" ", "_").strip("._") or "image"


def _read_lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a journal, and where each ends; the last one may have been cut off."""
    end = 0
    for number, raw in enumerate(file, 1):
        try:
            line = json_module.loads(raw) if raw.endswith(b"\n") else None
        except ValueError:
            line = None
        if not isinstance(line, dict):
            if file.read(1):
                raise ValueError(f"{path} is damaged in line {number}; move it away to start again.")
            return
        if number == 1 and line.get("schema") != _SCHEMA:
            raise ValueError(f"{path} does not begin with the schema {_SCHEMA!r}: another program or version wrote it.")
        end += len(raw)
        yield end, line


def _as_json(value: Any) -> Any:
    """The value as it comes back from JSON."""
    return json_module.loads(json_module.dumps(value, default=str))


def _plain_number(value: Any) -> Any:
    """Numbers of other libraries."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not for JSON.")


def _write_list(file: IO[str], items: Iterator[Any]) -> None:
    """Write a JSON list, an item a line, without having all of it in memory."""
    file.write("[")
    for number, item in enumerate(items):
        text = json_module.dumps(item, allow_nan=False, ensure_ascii=False)
        file.write((",\n" if number else "\n") + text)
    file.write("\n]")


def _image_entry(line: Mapping[str, Any]) -> dict[str, Any]:
    """An image of a COCO file."""
    entry = {"id": line["image_id"], "file_name": line["file"]}
    return {**entry, "height": line["height"], "width": line["width"]}


def _is_label_line(line: Mapping[str, Any]) -> bool:
    return line.get("objects") is None and line.get("segments") is None


def _counts_of(line: Mapping[str, Any]) -> Counter[str]:
    """How many objects or segments there are of each class, or how many pixels."""
    if _is_label_line(line):
        return Counter({entry["class"]: entry["area"] for entry in line.get("pixel_classes") or []})
    entries = line["objects"] if line.get("objects") is not None else line["segments"]
    return Counter(entry["class"] for entry in entries)


def _crop(image: np.ndarray, box_xyxy: Sequence[float | None] | None) -> np.ndarray:
    """The part of an image that a box touches."""
    if box_xyxy is None or None in box_xyxy:
        return image[:0]
    x1, y1, x2, y2 = (max(float(v or 0), 0.0) for v in box_xyxy)
    return image[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]


def _label_png(result: Result) -> bytes:
    """The class of each pixel as a picture of one channel."""
    labels = result.label_map
    assert labels is not None
    scores = result.sem_seg
    count = max(int(labels.max(initial=-1)) + 1, scores.shape[0] if scores is not None and scores.dim() == 3 else 0)
    kind, void = (np.uint8, 255) if count <= 255 else (np.uint16, 65535)
    return _png(np.where(labels < 0, void, labels).astype(kind))


def _png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format="PNG")
    return stream.getvalue()


def _hold(journal: IO[bytes], folder: Path) -> None:
    """Lock a journal as long as it is open, or raise where another process has it; not where there are no locks."""
    state = os.fstat(journal.fileno())
    mark = (os.getpid(), state.st_dev, state.st_ino)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportOptionalMemberAccess]
    except BlockingIOError:
        if mark not in _ours:  # of a writer of this process that was not closed
            journal.close()
            raise FileExistsError(
                f"Another process is writing its results into {folder}: choose another folder, or wait for its end."
            ) from None
    except (OSError, AttributeError):  # a file system, or a system, without locks
        pass
    else:
        _ours.add(mark)


def _writer_of(content: bytes) -> Callable[[Path], None]:
    """A function that writes these bytes to a file."""

    def write(path: Path) -> None:
        with atomic_write(path) as f:
            f.write(content)

    return write
