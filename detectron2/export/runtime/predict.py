#!/usr/bin/env python
"""Predict on images with an exported model. Needs NumPy, Pillow and a runtime (onnxruntime or OpenVINO), not PyTorch.

    python predict.py photo.jpg --output drawn.png --json results.json --threshold 0.5

It reads `model.json`, which lies beside the model and says how images are prepared and what the outputs mean. As a
module: `Predictor("folder of the model")("photo.jpg")` gives arrays in the frame of the image.

Letters: `N` images, `D` detections, `K` keypoints, `C` classes, `M` and `S` sides of a predicted mask and heat map,
`H`, `W` height and width in pixels. Boxes are `(x1, y1, x2, y2)` in pixels, continuous: pixel `i` covers `[i, i + 1]`.
"""

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .drawing import draw
from .images import load_image, preprocess, resized_size
from .results import class_name, postprocess, regions, to_json

__all__ = [
    "LAYOUT",
    "Predictor",
    "create_session",
    "draw",
    "load_image",
    "main",
    "postprocess",
    "preprocess",
    "read_metadata",
    "resized_size",
    "to_json",
]

LAYOUT = 1
"""The newest layout of `model.json` that this file reads."""

TASKS = ("instances", "keypoints", "proposals", "semantic", "panoptic", "panoptic_deeplab", "mask_classification")
_NEEDED = ("artifact", "task", "inputs", "outputs", "preprocessing")
_NEEDED_PREPROCESSING = ("channels", "short_edge", "long_edge")
_LENGTHS = tuple(f"preprocessing.{name}" for name in ("short_edge", "long_edge", "size_divisibility", "square"))
_CHOICES = {
    "format": ("onnx", "openvino", "pt2", "aoti", "torchscript"),
    "task": TASKS,
    "preprocessing.channels": ("BGR", "RGB"),
    "preprocessing.exif": ("apply", "ignore"),
}

Session = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


def read_metadata(model: str | Path) -> tuple[dict[str, Any], Path]:
    """Read `model.json`; of a lone ONNX file, the same text in the file's metadata.

    Args:
        model: the folder of an exported model, or the file of the model in it.

    Returns:
        What `model.json` says, and the path of the model's file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the text is damaged, or of a newer layout than this file knows.
    """
    path = Path(model)
    if not path.exists():
        raise FileNotFoundError(f"There is no exported model at {str(path)!r}: give the folder that the export wrote.")
    described = path / "model.json" if path.is_dir() else path.with_name("model.json")
    if described.is_file():
        meta = _checked(described.read_bytes(), described)
        if path.is_dir() or path.name == meta["artifact"]:
            artifact = described.with_name(meta["artifact"])
            if not artifact.exists():
                raise FileNotFoundError(
                    f"{described} describes {meta['artifact']!r}, which is not in its folder: copy it there too."
                )
            return meta, artifact
    if path.suffix == ".onnx":
        text = _load_onnx(path).get_modelmeta().custom_metadata_map.get("detectron2")
        if text:
            return _checked(text.encode(), path), path
        raise ValueError(
            f"{path} has no entry 'detectron2' in its metadata: it was not written by `detectron2 export`."
        )
    raise FileNotFoundError(f"There is no model.json for {str(path)!r}: copy the one that the export wrote beside it.")


def wrong_values(meta: Mapping[str, Any]) -> list[str]:
    """Say which of the values in `model.json` that all else rests on are none that an export writes."""
    wanted = {"artifact": (str, "a name"), "inputs": (list, "a list"), "outputs": (list, "a list")}
    wanted["preprocessing"] = (dict, "an object")
    wrong = [f"{k} is {meta[k]!r}, not {what}" for k, (t, what) in wanted.items() if not isinstance(meta[k], t)]
    for key in ("inputs", "outputs"):
        if isinstance(meta[key], list) and not all(isinstance(name, str) for name in meta[key]):
            wrong.append(f"{key} is {meta[key]!r}, not a list of names")
    if isinstance(meta["artifact"], str) and not (Path(meta["artifact"]).name == meta["artifact"] != ""):
        wrong.append(f"artifact is {meta['artifact']!r}, not the name of a file in this folder")
    preparation = meta["preprocessing"] if isinstance(meta["preprocessing"], dict) else {}
    described = {**meta, **{f"preprocessing.{key}": value for key, value in preparation.items()}}
    for key, choices in _CHOICES.items():
        if key in described and described[key] not in choices:
            wrong.append(f"{key} is {described[key]!r}, not one of {', '.join(choices)}")
    for key in _LENGTHS:
        length = described.get(key, 0)
        if not isinstance(length, int) or isinstance(length, bool) or length < 0:
            wrong.append(f"{key} is {length!r}, not a number of pixels, or 0")
    for key in ("score_threshold", "mask_threshold"):
        value = meta.get(key)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
            wrong.append(f"{key} is {value!r}, not a number")
    size = meta.get("size")
    numbers = size if isinstance(size, list) and len(size) == 2 else [0]
    if size is not None and not all(isinstance(x, int) and x > 0 for x in numbers):
        wrong.append(f"size is {size!r}, not a height and a width in pixels, or null")
    return wrong


def _checked(text: bytes, source: Path) -> dict[str, Any]:
    """Parse metadata; refuse what this file cannot understand."""
    try:
        meta = json.loads(text)
    except ValueError as e:
        raise ValueError(f"The metadata in {source} are damaged ({e}): copy the file again, or export anew.") from e
    layout = meta.get("layout") if isinstance(meta, dict) else None
    if not isinstance(layout, int):
        raise ValueError(f"The metadata in {source} name no layout: the file does not come from `detectron2 export`.")
    if layout > LAYOUT:
        raise ValueError(
            f"{source} has layout {layout}, and this predict.py reads layouts up to {LAYOUT}: use the predict.py that "
            "the export wrote beside the model."
        )
    preparation = meta.get("preprocessing")
    missing = [name for name in _NEEDED if name not in meta]
    if isinstance(preparation, dict):
        missing += [f"preprocessing.{name}" for name in _NEEDED_PREPROCESSING if name not in preparation]
    if missing:
        raise ValueError(f"The metadata in {source} lack {', '.join(missing)}: the file is damaged; export anew.")
    if wrong := wrong_values(meta):
        raise ValueError(
            f"The metadata in {source} are damaged: {'; '.join(wrong)}. Copy the file again, or export anew."
        )
    return meta


def create_session(artifact: str | Path, meta: Mapping[str, Any]) -> Session:
    """Load a model into its runtime.

    Args:
        artifact: a file of ONNX (`.onnx`) or OpenVINO (`.xml`).
        meta: what `model.json` says.

    Returns:
        A function from arrays by name to arrays by name.

    Raises:
        ImportError: the runtime is not installed.
        ValueError: the file is damaged, of another format, or lacks an output that `meta` names.
    """
    path = Path(artifact)
    if path.suffix == ".onnx":
        session, available = _onnx_session(path)
    elif path.suffix == ".xml":
        session, available = _openvino_session(path, meta)
    else:
        raise ValueError(
            f"{path.name} needs PyTorch, which this file does without: export with --format onnx or openvino, or give "
            "Predictor a session, a function from arrays by name to arrays by name."
        )
    if missing := [name for name in meta["outputs"] if name not in available]:
        raise ValueError(
            f"{path} has no output {', '.join(missing)}, which model.json names: the two do not belong together."
        )
    return session


def _load_onnx(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise ImportError("An ONNX file needs onnxruntime: pip install onnxruntime (or onnxruntime-gpu).") from e
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(path, providers=providers)
    except Exception as e:  # its own classes, which differ between versions
        raise ValueError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {e}") from e


def _onnx_session(path: Path) -> tuple[Session, set[str]]:
    model = _load_onnx(path)
    names = [output.name for output in model.get_outputs()]
    return lambda arrays: dict(zip(names, model.run(names, dict(arrays)), strict=True)), set(names)


def _openvino_session(path: Path, meta: Mapping[str, Any]) -> tuple[Session, set[str]]:
    try:
        import openvino
    except ImportError as e:
        raise ImportError("An OpenVINO file needs openvino: pip install openvino.") from e
    # Left alone, OpenVINO computes in bfloat16 where the CPU has it, which moves boxes by pixels.
    hint = {"INFERENCE_PRECISION_HINT": "f32"} if meta.get("precision", "fp32") == "fp32" else {}
    try:
        model = openvino.Core().compile_model(path, "CPU", hint)
    except Exception as e:
        raise ValueError(f"openvino {openvino.__version__} cannot load {path}: {e}") from e
    output_of = {name: output for output in model.outputs for name in output.get_names()}

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        results = model(dict(arrays))
        return {name: np.array(results[output]) for name, output in output_of.items()}

    return run, set(output_of)


class Predictor:
    """An exported model, from image to arrays in the frame of the image.

    Args:
        model: the folder of an exported model, or the file of the model in it.
        session: runs the model: a function from arrays by name to arrays by name. By default onnxruntime or OpenVINO,
            by the format of the file.

    Attributes:
        meta: what `model.json` says.
        session: see above.
        has_threshold: whether the threshold of scores can be chosen.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: `model.json` is damaged or of a newer layout, or the format needs a session.
        ImportError: the runtime is not installed.

    Example:
        predictor = Predictor("output/exported")
        result = predictor("photo.jpg")
        draw("photo.jpg", result, predictor.meta).save("drawn.png")
    """

    def __init__(self, model: str | Path, session: Session | None = None):
        self.meta, artifact = read_metadata(model)
        self.session = create_session(artifact, self.meta) if session is None else session
        has_own = self.meta["task"] == "mask_classification" and self.meta.get("score_threshold") is not None
        self.has_threshold = has_own or "score_threshold" in self.meta["inputs"]

    def __call__(self, image: str | Path | Image.Image | np.ndarray, threshold: float | None = None) -> dict[str, Any]:
        """Predict on one image.

        Args:
            image: see `load_image`.
            threshold: detections have a higher score; by default the model's.

        Returns:
            See `postprocess`.

        Raises:
            ValueError: a threshold is given, and the model has none; and see `load_image`.
        """
        if threshold is not None and not self.has_threshold:
            raise ValueError(f"A model of the task {self.meta['task']!r} has no score threshold: leave it out.")
        pixels = load_image(image, self.meta["preprocessing"].get("exif", "apply"))
        images, image_sizes = preprocess(pixels, self.meta)
        inputs: dict[str, np.ndarray] = {"images": images, "image_sizes": image_sizes}
        meta = self.meta if threshold is None else {**self.meta, "score_threshold": threshold}
        if "score_threshold" in meta["inputs"]:
            inputs["score_threshold"] = np.array(meta.get("score_threshold") or 0.0, np.float32)
        return postprocess(self.session(inputs), meta, 0, (pixels.shape[0], pixels.shape[1]))


def _output_paths(images: Sequence[str], output: str | None, wants_json: bool) -> list[Path | None]:
    """Where the drawing of each image goes."""
    if output is None and wants_json:
        return [None] * len(images)
    target, ending = (Path("."), "_prediction.png") if output is None else (Path(output), ".png")
    taken = {Path(image).resolve() for image in images}  # no photo is written over, nor another drawing
    if output is not None and target.suffix and not target.is_dir():
        if len(images) > 1:
            raise ValueError(f"--output is the file {output!r}, and there are {len(images)} images: give a folder.")
        if Image.registered_extensions().get(target.suffix.lower()) not in Image.SAVE:
            raise ValueError(f"--output is {output!r}, and Pillow does not write {target.suffix!r} files: use .png.")
        if target.resolve() in taken:
            raise ValueError(f"--output is {output!r}, the image itself: give another file, or a folder.")
        return [target]
    target.mkdir(parents=True, exist_ok=True)
    paths: list[Path | None] = []
    for stem in (Path(image).stem for image in images):
        names = (target / f"{stem}{f'_{n}' if n > 1 else ''}{ending}" for n in itertools.count(1))
        paths.append(path := next(path for path in names if path.resolve() not in taken))
        taken.add(path.resolve())
    return paths


def _summary(result: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    if "sem_seg" in result or "segments" in result:
        names = Counter(class_name(meta, label, thing) for thing, label, _, _ in regions(result))
        what = "segments"
    else:
        names = Counter(class_name(meta, label, True) for label in result.get("classes", np.zeros(0)).tolist())
        what = "objects" if "classes" in result else "regions"
    count = sum(names.values()) or len(result.get("boxes", ()))
    listed = ", ".join(f"{n} {name}" for name, n in names.most_common(8))
    return f"{count} {what if count != 1 else what[:-1]}" + (
        f" ({listed}{', ...' if len(names) > 8 else ''})" if names else ""
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if something could not be done."""
    parser = argparse.ArgumentParser(description="Predict on images with an exported model, without PyTorch.")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--model", default=str(Path(__file__).parent), help="folder of the model; default: this file's")
    parser.add_argument("--output", help="file, or folder for several images, that gets the drawings")
    parser.add_argument("--json", help="file that gets the results")
    parser.add_argument("--threshold", type=float, help="least score of a detection; default: 0.5")
    args = parser.parse_args(argv)
    failed, results = False, []
    try:
        predictor = Predictor(args.model)
        if args.json:
            Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        threshold = 0.5 if args.threshold is None and predictor.has_threshold else args.threshold
        for image, target in zip(args.images, _output_paths(args.images, args.output, bool(args.json)), strict=True):
            start = time.perf_counter()
            try:
                pixels = load_image(image, predictor.meta["preprocessing"].get("exif", "apply"))
            except (OSError, ValueError) as e:
                print(f"error: {e}", file=sys.stderr)
                failed = True
                continue
            result = predictor(pixels, threshold)
            line = f"{image}: {_summary(result, predictor.meta)}, {time.perf_counter() - start:.2f} s"
            if target is not None:
                draw(pixels, result, predictor.meta).save(target)
                line += f" -> {target}"
            print(line)
            results.append({"file": image, "size": list(pixels.shape[:2]), **to_json(result, predictor.meta)})
        if args.json:
            text = json.dumps(results)  # whole, before the file is touched
            Path(args.json).write_text(text, encoding="utf-8")
    except (OSError, ValueError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
