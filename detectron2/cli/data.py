"""``detectron2 data``: check a data set before training, look at it, convert it.

detectron2 data check annotations.json --num-classes 3 --fix cleaned.json
detectron2 data show annotations.json --sheet samples.png
detectron2 data convert path/to/voc path/to/yolo --to yolo
"""

import argparse

from detectron2.cli import _data_check, _data_convert, _data_show
from detectron2.cli._common import add_dataset_arguments
from detectron2.data.formats.annotated_images import FORMATS

_SOURCE = (
    "a COCO .json file, a folder in Pascal VOC format (Annotations, ImageSets, JPEGImages), a folder or data.yaml in "
    "YOLO format, or the name of a registered data set"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``detectron2 data``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="look for mistakes; the exit status is 1 if there are any that training would stumble over",
        description="Look for mistakes in data sets: labels, boxes, masks, keypoints, duplicates, image files. The "
        "exit status is 1 if there are any that training would stumble over.",
    )
    check.add_argument("source", nargs="*", metavar="DATA", help=_SOURCE + "; default: all data sets of the config")
    _add_reading(check)
    _add_config(check, "compare with the model of this config: classes, keypoints, masks")
    check.add_argument("--num-classes", type=int, metavar="N", help="number of classes of the model")
    check.add_argument(
        "--files",
        type=_number_of_files,
        default=10_000,
        metavar="all|N|none",
        help="how many image files to look at (headers only), evenly spaced; default: 10000",
    )
    check.add_argument("--fix", metavar="OUT.json", help="write a cleaned copy in COCO format; says what was changed")
    check.add_argument("--json", action="store_true", help="print the report as JSON")
    show = actions.add_parser(
        "show",
        help="draw samples with their annotations",
        description="Draw samples of a data set with their annotations, as they are or as a model gets them.",
    )
    show.add_argument("source", metavar="DATA", help=_SOURCE)
    _add_reading(show)
    _add_config(show, "the config that --augmented takes the augmentations from")
    show.add_argument("--augmented", action="store_true", help="as the model gets them in training")
    show.add_argument("--num", type=int, default=16, metavar="N", help="how many; default: 16")
    show.add_argument(
        "--seed", type=int, default=0, help="of the choice of samples and of the augmentations; default: 0"
    )
    place = show.add_mutually_exclusive_group()
    place.add_argument("--output", metavar="DIR", help="write one picture for each sample into this folder")
    place.add_argument(
        "--sheet", metavar="FILE.png", help="write all into one picture; default: samples.png, without --output"
    )
    convert = actions.add_parser(
        "convert",
        help="from one format to another",
        description="Convert a data set between the formats of COCO, Pascal VOC and YOLO.",
    )
    convert.add_argument("source", metavar="SRC", help=_SOURCE)
    convert.add_argument("target", metavar="DST", help="a new folder; for COCO also a .json file")
    convert.add_argument("--from", dest="source_format", choices=FORMATS, help="default: by what lies at SRC")
    convert.add_argument("--to", dest="target_format", choices=FORMATS, help="default: coco if DST ends in .json")
    convert.add_argument(
        "--images",
        choices=("copy", "link", "none"),
        help="copy images, link to them, or leave them where they are; default: link, or none if DST is a .json file",
    )
    _add_reading(convert)
    for action in (check, show, convert):
        add_dataset_arguments(action)
        action.add_argument("--traceback", action="store_true", help="show the traceback of an error")


def _add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--image-root", metavar="DIR", help="where the images of a COCO file are; default: near the file"
    )
    parser.add_argument(
        "--split", default="", help="the part of a VOC or YOLO folder to read, such as train; default: all"
    )


def _add_config(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--config-file", "--config", metavar="FILE", help=text)
    parser.add_argument("--opts", nargs="+", default=[], metavar="CHANGE", help="changes to the config: KEY VALUE ...")


def _number_of_files(text: str) -> int | None:
    """-> how many files; None for all."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected all, none or a number, not {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Do one of the three."""
    return {"check": _data_check.run, "show": _data_show.run, "convert": _data_convert.run}[args.action](args)
