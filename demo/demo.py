#!/usr/bin/env python
"""Show what a model of a YAML config sees in images, a video or the pictures of a camera.

python demo/demo.py --config-file configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml \
    --input a.jpg b.jpg --output drawn/ \
    --opts MODEL.WEIGHTS detectron2://COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl
python demo/demo.py --config-file ... --video-input in.mp4 --output out.mp4 --opts MODEL.WEIGHTS ...
python demo/demo.py --config-file ... --video-input in.mp4 --output drawn/ --opts MODEL.WEIGHTS ...
python demo/demo.py --config-file ... --webcam --opts MODEL.WEIGHTS ... MODEL.DEVICE cpu

Without --output the result is shown in a window, which a key press closes (Esc or q for a video). Windows and cameras
need OpenCV (pip install opencv-python), and videos PyAV (pip install 'detectron2[video]') or OpenCV. `detectron2
predict` writes predictions as JSON as well, and needs no --config-file for checkpoints that were trained here.
"""

import argparse
import glob
import importlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from detectron2.config import CfgNode, get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.inference.video import Camera, VideoReader, VideoWriter, read_ahead
from detectron2.utils.logger import setup_logger
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import ColorMode, VisImage, Visualizer

WINDOW = "detections"
ESCAPE = 27

logger = logging.getLogger("detectron2.demo")


def opencv() -> Any:
    """The module, which is optional."""
    try:
        return importlib.import_module("cv2")
    except ImportError as e:
        raise SystemExit(f"Windows need OpenCV ({e}): pip install opencv-python; or give --output.") from e


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The config of the command line; one threshold for all kinds of models."""
    if "://" not in args.config_file and not os.path.isfile(args.config_file):
        raise SystemExit(f"There is no config file {args.config_file!r} (working directory: {os.getcwd()}).")
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = args.confidence_threshold
    cfg.freeze()
    return cfg


def draw(visualizer: Visualizer, outputs: dict[str, Any]) -> VisImage:
    """Draw what a model gives for an image."""
    if "panoptic_seg" in outputs:
        panoptic, segments = outputs["panoptic_seg"]
        return visualizer.draw_panoptic_seg(panoptic.to("cpu"), segments)
    if "instances" in outputs:
        return visualizer.draw_instance_predictions(outputs["instances"].to("cpu"))
    return visualizer.draw_sem_seg(outputs["sem_seg"].argmax(dim=0).to("cpu"))


def draw_frame(visualizer: VideoVisualizer, frame: np.ndarray, outputs: dict[str, Any]) -> np.ndarray:
    """The same for a frame `(H, W, 3)`, RGB, of a video: an object keeps its colour."""
    if "panoptic_seg" in outputs:
        panoptic, segments = outputs["panoptic_seg"]
        drawn = visualizer.draw_panoptic_seg_predictions(frame, panoptic.to("cpu"), segments)
    elif "instances" in outputs:
        drawn = visualizer.draw_instance_predictions(frame, outputs["instances"].to("cpu"))
    else:
        drawn = visualizer.draw_sem_seg(frame, outputs["sem_seg"].argmax(dim=0).to("cpu"))
    return drawn.get_image()


def describe(outputs: dict[str, Any]) -> str:
    """How much was found, in words."""
    if "panoptic_seg" in outputs:
        return f"{len(outputs['panoptic_seg'][1])} segments"
    if "instances" in outputs:
        return f"{len(outputs['instances'])} instances"
    return f"{len(outputs['sem_seg'].argmax(dim=0).unique())} classes"


def files_of(patterns: Sequence[str]) -> list[str]:
    """Files named as such or by a pattern such as "images/*.jpg"."""
    found: list[str] = []
    for pattern in patterns:
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(os.path.expanduser(pattern)))
        if not matches:
            raise SystemExit(f"There is no file {pattern!r}.")
        found += matches
    return found


def check_window() -> None:
    """Refuse to show a window where there can be none."""
    is_blind = sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    try:
        if not is_blind:  # Qt would end the process
            opencv().namedWindow(WINDOW)
            return
        reason = "there is no display"
    except (AttributeError, opencv().error):
        reason = "this OpenCV has no windows (opencv-python has, opencv-python-headless has not)"
    raise SystemExit(f"The result cannot be shown in a window: {reason}. Give --output, to write it into files.")


def places_of(files: Sequence[str], output: str) -> list[str]:
    """The file for each picture or video in the folder, or for the only one in the file, `output`."""
    into_folder = os.path.isdir(output) or len(files) > 1 or not os.path.splitext(output)[1]
    places = [os.path.join(output, os.path.basename(file)) if into_folder else output for file in files]
    for file, place in zip(files, places, strict=True):
        if os.path.realpath(file) == os.path.realpath(place):
            raise SystemExit(f"--output {output} would write over {file}: give another folder or file.")
        if places.count(place) > 1:
            raise SystemExit(f"Several inputs have the name of {place}: give them in several calls.")
    os.makedirs(output if into_folder else os.path.dirname(output) or ".", exist_ok=True)
    return places


def run_on_images(make_predictor: Callable[[], DefaultPredictor], files: Sequence[str], output: str | None) -> None:
    """Draw each image into the folder, or the file, `output`; or show it."""
    places = [""] * len(files) if output is None else places_of(files, output)
    if output is None:
        check_window()
    predictor = make_predictor()
    for path, place in zip(files, places, strict=True):
        start = time.perf_counter()
        bgr = read_image(path, "BGR", predictor.cfg.INPUT.get("EXIF", "apply"))
        outputs = predictor(bgr)
        logger.info("%s: %s in %.2f s", path, describe(outputs), time.perf_counter() - start)
        drawn = draw(Visualizer(bgr[:, :, ::-1], predictor.metadata, instance_mode=ColorMode.IMAGE), outputs)
        if place:
            drawn.save(place)
            continue
        opencv().imshow(WINDOW, drawn.get_image()[:, :, ::-1])
        if opencv().waitKey(0) == ESCAPE:
            break


def drawn_frames(
    make_predictor: Callable[[], DefaultPredictor], video: VideoReader | Camera
) -> Iterator[tuple[np.ndarray, float]]:
    """Frames `(H, W, 3)`, BGR, with what was found drawn on them, and their times in seconds."""
    frames = read_ahead(video, 4) if isinstance(video, VideoReader) else iter(video)
    first = next(frames)  # a camera that cannot be opened says so before the model is made
    predictor = make_predictor()
    visualizer = VideoVisualizer(predictor.metadata, ColorMode.IMAGE)
    for frame, seconds in itertools.chain([first], frames):
        yield np.ascontiguousarray(draw_frame(visualizer, frame[:, :, ::-1], predictor(frame))[:, :, ::-1]), seconds


def show_frames(frames: Iterator[tuple[np.ndarray, float]]) -> None:
    """Show frames until they end or a key is pressed."""
    for frame, _ in frames:
        opencv().imshow(WINDOW, frame)
        if opencv().waitKey(1) in (ESCAPE, ord("q")):
            break
    opencv().destroyAllWindows()


def run_on_video(make_predictor: Callable[[], DefaultPredictor], source: str | int, output: str | None) -> None:
    """Draw a video, or what a camera sees, into a file in which frames keep their times; or show it."""
    if isinstance(source, str) and "://" not in source and not os.path.isfile(source):
        raise SystemExit(f"There is no file {source!r}.")
    video = Camera(source) if isinstance(source, int) else VideoReader(source)
    frames = drawn_frames(make_predictor, video)  # makes the model when the first frame is wanted
    if output is None:
        check_window()
        show_frames(frames)
        return
    (place,) = places_of(["camera.mp4" if source == 0 else str(source)], output)
    fps, count = (video.fps, video.frame_count) if isinstance(video, VideoReader) else (None, None)
    with VideoWriter(place, fps) as writer:  # which leaves a video of the frames so far, whatever happens
        for frame, seconds in tqdm(frames, total=count):
            writer.write(frame, seconds)
    logger.info("The video is %s", place)


def get_parser() -> argparse.ArgumentParser:
    """The options; changes to the config come last, behind --opts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a YAML config")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--webcam", action="store_true", help="take pictures from the first camera")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument("--input", nargs="+", metavar="FILE", help='images, or patterns such as "images/*.jpg"')
    parser.add_argument("--output", metavar="PATH", help="folder or file to write to; default: show a window")
    parser.add_argument("--confidence-threshold", type=float, default=0.5, help="least score of an object")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="changes to the config: KEY VALUE ...")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and do it."""
    args = get_parser().parse_args(argv)
    setup_logger(name="detectron2")
    try:
        files = files_of(args.input) if args.input else []
        cfg = setup_cfg(args)
        with torch.inference_mode():
            if files:
                run_on_images(lambda: DefaultPredictor(cfg), files, args.output)
            else:
                run_on_video(lambda: DefaultPredictor(cfg), 0 if args.webcam else args.video_input, args.output)
    except (OSError, ValueError, KeyError, ImportError) as e:  # whose messages say what to do
        raise SystemExit(f"demo.py: {e.args[0] if isinstance(e, KeyError) and e.args else e}") from e


if __name__ == "__main__":
    sys.exit(main())
