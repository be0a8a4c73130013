"""`detectron2 predict`: run a trained model on images and videos; write pictures, JSON and tables.

detectron2 predict --weights output/demo/model_final.pth a.jpg folder/ clip.mp4 --output predictions

Checkpoints bring their config and class names along; --config-file is for those of other programs. Results are written
as they come, see `detectron2.inference.writers`.
"""

import argparse
import contextlib
import itertools
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from detectron2.checkpoint.parts import REST, is_parts_folder
from detectron2.cli.common import load_predictor, register_datasets
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.distributed.layout import find_layout
from detectron2.inference import BulkRun, Result, read_frames
from detectron2.inference.sources import IMAGE_SUFFIXES, Input, find_inputs
from detectron2.inference.video import VIDEO_SUFFIXES, VideoReader
from detectron2.inference.writers import ResultWriter, written_files
from detectron2.tracking import ByteTracker, track

_MOST_CLASSES = 8  # in the summary
_GPU_BATCH = 8
# Options that do nothing without another, and what they are where they are not given.
_DEPENDENT = (("overlap", "tile", 0.2), ("shard_size", "shards", 500), ("shard_format", "shards", "jsonl"))
_AHEAD = 8
_LEAST_TRACKED, _SURE, _NEW = 0.1, 0.6, 0.7  # scores of ByteTracker: ignored below, matched first, begins a track


def run(args: argparse.Namespace) -> int:
    """Predict on everything that is named."""
    kept, args.classes = (None, args.classes) if args.voc else (args.classes, None)
    register_datasets(args)
    words, opts = _split_words([*args.image, *args.input])
    if not words:
        raise ValueError("There is nothing to predict on: name images, folders of images, or videos.")
    _check_options(args)
    if args.shards:
        return _predict_into_shards(args, words, opts, kept)
    inputs = _inputs(words, args.output)
    has_videos = any(item.is_video for item in inputs)
    if args.track and not has_videos:
        raise ValueError("--track numbers objects through the frames of a video, and there is no video here.")
    predictor = load_predictor(
        args,
        opts,
        tta=True if args.tta else None,
        tile=args.tile,
        overlap=args.overlap,
        workers=args.workers,
        mask_format="rle",
    )
    is_camera = any(isinstance(item.value, int) for item in inputs)
    predictor.batch_size = 1 if is_camera else args.batch or (_GPU_BATCH if predictor.device.type != "cpu" else 1)
    settings: dict[str, Any] = {
        "save": args.save,
        "json": args.json,
        "csv": args.csv,
        "crops": args.crops,
        "resume": args.resume,
        "image_ids": _image_ids([_name(item) for item in inputs if not item.is_video], args),
        "category_ids": _category_ids(args, predictor.metadata.get("thing_classes") or []) or None,
        "confidence": args.confidence,
        "classes": _kept_classes(kept, predictor.metadata),
        "asked": _asked(args, opts),
        "options": {"color_by": args.color_by},
    }
    writer = ResultWriter(args.output, **settings) if args.resume else None
    left = inputs if writer is None else [item for item in inputs if not _is_done(writer, item)]
    is_alone = len(inputs) == 1 and not has_videos and not os.path.isdir(inputs[0].source or "")
    ahead = max(_AHEAD, 2 * predictor.batch_size)
    frames = read_frames(
        left, image_format=predictor.image_format, exif=predictor.exif, workers=args.workers, ahead=ahead
    )
    results: Any = predictor.predict_frames(frames, on_error="raise" if is_alone else "keep")
    results = _tracked(results, args.confidence) if args.track else results
    # What ends here, with a model or an image that is of no use, leaves an earlier run's results as they are.
    first = list(itertools.islice(results, 1))
    if len(inputs) == 1 and has_videos and first and first[0].error is not None:
        results.close()
        raise first[0].error
    writer = writer or ResultWriter(args.output, **settings)
    try:
        with _sigterm_raises(), writer:
            try:
                _write_all(itertools.chain(first, results), writer, left)
            except KeyboardInterrupt:
                if not is_camera:  # which has no other end
                    raise
    except (KeyboardInterrupt, SystemExit):
        sys.stdout.write(_summary(writer, inputs, args.save) + "\nThe rest is left: the same command with --resume.\n")
        raise
    finally:
        results.close()
    sys.stdout.write(_summary(writer, inputs, args.save) + "\n")
    return 1 if writer.failed else 0


def _write_all(results: Iterable[Result], writer: ResultWriter, inputs: Sequence[Input]) -> None:
    """Write results while the model works on the next ones; name those that are none, and show how far it is."""
    is_shown = sys.stderr.isatty()
    unit = " frames" if any(item.is_video for item in inputs) else " images"
    total = _frame_count(inputs) if is_shown else None
    with _Beside(writer.write) as beside:
        for result in tqdm(results, total=total, unit=unit, disable=not is_shown):
            if result.error is not None:
                text = str(result.error)
                named = text if result.name in text else f"{result.name}: {text}"
                tqdm.write(f"left out: {named}", file=sys.stderr)
            beside.put(result)


class _Beside:
    """Calls a function for one value after the other, in a thread; the values that wait are few."""

    def __init__(self, function: Callable[[Any], None]):
        self._function = function
        self._waiting: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._failure: BaseException | None = None
        self._is_stopped = False
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> "_Beside":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all is written, also when something else ends the block; a second Ctrl-C ends that, too."""
        try:
            self._waiting.put(None)
            self._thread.join()
        except BaseException:
            self._is_stopped = True
            self._thread.join()
            raise
        self._raise_failure()

    def put(self, value: Any) -> None:
        self._raise_failure()
        self._waiting.put(value)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (value := self._waiting.get()) is not None:
            if self._failure is None and not self._is_stopped:
                try:
                    self._function(value)
                except BaseException as e:
                    self._failure = e  # the rest is taken and dropped, so that put() does not wait forever


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within the context SIGTERM, which ends a process at once otherwise, lets it write its tables first."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(143)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Return (inputs, changes to the config), which may be mixed: `KEY VALUE` or `path.key=value` is a change."""
    inputs, opts = [], []
    rest = iter(words)
    for word in rest:
        is_file = os.path.exists(word) or word.lower().endswith((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.\w+)*", word) and not is_file:
            opts += [word, *itertools.islice(rest, 1)]
        else:
            is_change = not os.path.exists(word) and (word[0:1] in ("~", "+") or re.match(r"[\w.@]+=", word))
            (opts if is_change else inputs).append(word)
    return inputs, opts


def _inputs(words: list[str], output: str) -> list[Input]:
    """Return what there is to predict on, each once, without what an earlier run wrote."""
    written = written_files(output)
    inputs = {}
    for item in find_inputs(words, exclude=output):
        is_file = isinstance(item.value, str) and "://" not in item.value
        if not (is_file and written and os.path.realpath(item.value) in written):
            inputs.setdefault(os.path.abspath(item.value) if is_file else item.value, item)
    if not inputs:
        raise ValueError(f"There is nothing to predict on but what an earlier run wrote into {output}.")
    return list(inputs.values())


def _predict_into_shards(args: argparse.Namespace, words: list[str], opts: list[str], kept: str | None) -> int:
    """Predict as one of any number of processes, which torchrun or SLURM starts."""
    args.classes = args.classes or kept
    other = ("csv", "crops", "track", "classes", "save", "color_by", "output")
    for option in (_written(name) for name in other if getattr(args, name)):
        raise ValueError(f"{option} is not for --shards, which writes the results of all images and nothing else.")
    layout = find_layout(1)
    rank, world_size = layout.rank or 0, layout.world_size if layout.rank is not None else 1
    launch = ""
    if world_size > 1:
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
        launch = " ".join(os.environ.get(name, "-") for name in names)
        args.device = _device_of_process(args.device, layout.local_rank or 0)
    predictor = load_predictor(
        args,
        opts,
        tta=True if args.tta else None,
        tile=args.tile,
        overlap=args.overlap,
        workers=args.workers,
        mask_format="rle",
    )
    run = BulkRun(
        args.shards,
        words,
        shard_size=args.shard_size,
        format=args.shard_format,
        asked={**_asked(args, opts), "confidence": args.confidence},
        resume=args.resume,
        rank=rank,
        world_size=world_size,
        launch=launch,
    )
    predictor.batch_size = args.batch or (_GPU_BATCH if predictor.device.type != "cpu" else 1)
    own = sum(run.length_of(number) for number in run.missing())
    failed = 0
    with tqdm(total=own, unit="image", disable=None if rank == 0 else True) as progress:

        def report(result: Result) -> None:
            nonlocal failed
            progress.update()
            if result.error is not None:
                failed += 1
                progress.write(f"left out: {result.error}", file=sys.stderr)

        start = time.perf_counter()
        count = run.predict(predictor, confidence=args.confidence, report=report)
    seconds = time.perf_counter() - start
    who = f"Process {rank} of {world_size}: " if world_size > 1 else ""
    speed = f"{count / max(seconds, 1e-9):.1f} images/s"
    sys.stdout.write(
        f"{who}{count} of {run.num_images} images in {seconds:.0f} s ({speed}), {failed} cannot be read\n"
        f"Written to {args.shards}\n"
    )
    return 1 if failed and world_size == 1 else 0  # a launcher would end the other processes


def _device_of_process(device: str | None, local_rank: int) -> str | None:
    """Return a GPU for each process of a machine; SLURM may let each see no other than its own."""
    count = torch.cuda.device_count()
    return f"cuda:{local_rank % count}" if count and device in (None, "cuda", "auto") else device


def _check_options(args: argparse.Namespace) -> None:
    """Refuse options that would do nothing, and fill in the values of those that are not given."""
    for name, needed, value in _DEPENDENT:
        if getattr(args, name) is None:
            setattr(args, name, value)
        elif not getattr(args, needed):
            raise ValueError(f"{_written(name)} does nothing without {_written(needed)}: give both, or leave it out.")
    if not args.shards:
        args.output, args.save = args.output or "predictions", args.save or "png"
        args.color_by = args.color_by or "instance"


def _written(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kept_classes(text: str | None, metadata: Metadata) -> list[str | int] | None:
    """Return the classes of `--classes`, by name, or by number where they have none."""
    if text is None:
        return None
    names = [*(metadata.get("thing_classes") or []), *(metadata.get("stuff_classes") or [])]
    chosen = [name.strip() for name in text.split(",")]
    unknown = [name for name in chosen if name not in names and not (name.isdecimal() and not names)]
    if unknown:
        there = ", ".join(names) or "no names of classes: give their numbers"
        raise ValueError(f"--classes names {', '.join(map(repr, unknown))}; the model has {there}.")
    return [name if name in names else int(name) for name in chosen]


def _asked(args: argparse.Namespace, opts: list[str]) -> dict[str, Any]:
    """Return what must be the same for a run that resumes, beside how results are written."""
    weights = Path(args.weights)
    file = weights / (REST if is_parts_folder(args.weights) else "model.json") if weights.is_dir() else weights
    saved = datetime.fromtimestamp(file.stat().st_mtime).isoformat(" ", "seconds") if file.is_file() else None
    names = ("config_file", "precision", "tta", "tile", "track")
    asked = {name: getattr(args, name) for name in names}
    asked |= {"weights": str(weights.resolve()) if saved else args.weights, "weights_saved": saved, "changes": opts}
    return {**asked, "overlap": args.overlap if args.tile else None}


def _is_done(writer: ResultWriter, item: Input) -> bool:
    """Whether an earlier run has finished an image or a video."""
    return isinstance(item.value, str) and writer.is_done(_name(item))


def _name(item: Input) -> str:
    """What an input of the command line is known by: its path, or its address without a password."""
    return str(item.source if "://" in str(item.value) else item.value)


def _tracked(results: Iterator[Result], confidence: float) -> Iterator[Result]:
    """Number the objects in the frames of each video; images stay as they are.

    All that is asked for with a low confidence may begin a track.
    """
    least = max(confidence, _LEAST_TRACKED)
    options = {"high_score": min(least, _SURE), "new_track_score": min(least, _NEW)}
    tracker, video = ByteTracker(**options), None
    for result in results:
        if result.error is None and result.time is not None:
            if video != (own := (result.path, result.frame.source)):
                tracker, video = ByteTracker(**options), own
            yield from track([result], tracker)
        else:
            yield result


def _frame_count(inputs: Sequence[Input]) -> int | None:
    """Return about how many images and frames there are; None if that is not known."""
    total = 0
    for item in inputs:
        count: int | None = 1
        if item.is_video:
            is_file = isinstance(item.value, str) and os.path.isfile(item.value)
            try:
                count = VideoReader(item.value).frame_count if is_file else None
            except OSError:  # which is said when its turn comes
                count = 0
        if count is None:
            return None
        total += count
    return total


def _summary(writer: ResultWriter, inputs: Sequence[Input], save: str) -> str:
    """Say what was found, and where it is."""
    videos = [item.is_video for item in inputs]
    tables = writer.tables
    images = _counted(writer.image_count, "frame" if all(videos) else "image")
    failed = f" ({len(writer.failed)} cannot be read)" if writer.failed else ""
    found = [f"{count} {name}" for name, count in writer.class_counts.most_common(_MOST_CLASSES)]
    tracked = f" ({len(writer.identities)} different ones in videos)" if writer.identities else ""
    start = f"{_counted(writer.object_count, 'object')} in {images}{failed}{tracked}"
    if "semantic.json" in tables:
        start = f"Classes of pixels in {images}{failed}"
        found = [f"{name} in {count}" for name, count in writer.class_counts.most_common(_MOST_CLASSES)]
    more = len(writer.class_counts) - len(found)
    found += [f"and {_counted(more, 'more class', 'more classes')}"] if more else []
    what = ", ".join(found)
    shown = ["pictures"] * (save != "none" and not all(videos)) + ["videos"] * (save != "none" and any(videos))
    maps = [f"label maps in {kind}" for kind in ("panoptic", "semantic") if f"{kind}.json" in tables]
    places = [*shown, *tables, *maps] or ["predictions.jsonl"]
    text = " and ".join([", ".join(places[:-1]), places[-1]]) if places[1:] else places[0]
    return f"{start}{': ' if what else ''}{what}\nWritten to {writer.folder}: {text}"


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _image_ids(files: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Return ids of images: those in the --coco data sets, else the numbers that are all names, else from 1 on."""
    known = {os.path.realpath(r["file_name"]): r["image_id"] for n, *_ in args.coco for r in DatasetCatalog.get(n)}
    if all(os.path.realpath(file) in known for file in files):
        return {file: known[os.path.realpath(file)] for file in files}
    stems = {Path(file).stem for file in files}
    are_numbers = len(stems) == len(files) and all(re.fullmatch(r"[0-9]{1,15}", stem) for stem in stems)
    return {file: int(Path(file).stem) if are_numbers else i for i, file in enumerate(files, 1)}


def _category_ids(args: argparse.Namespace, classes: list[str]) -> dict[str, int]:
    """Return the ids of the classes in the first --coco data set; empty if it lacks any: labels count from 0."""
    data = MetadataCatalog.get(args.coco[0][0]) if args.coco else Metadata()
    ids = {label: own for own, label in (data.get("thing_dataset_id_to_contiguous_id") or {}).items()}
    found = {name: ids[label] for label, name in enumerate(data.get("thing_classes") or []) if label in ids}
    return found if found.keys() >= set(classes) else {}
