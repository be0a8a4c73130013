"""The arguments of all commands, in a module that imports next to nothing: help and mistakes are shown at once.

Options and other words may be mixed in any order.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

__all__ = ["EXIT_STATUSES", "EXPORT_FORMATS", "build_parser", "parse"]

EXIT_STATUSES = {
    0: "success",
    1: "a user error, said in one message on stderr; of 'data check': the data has mistakes",
    2: "the command line cannot be understood; the usage is shown",
    130: "ended by Ctrl-C (SIGINT)",
    141: "the reader of the output has gone (SIGPIPE), as after `head`",
    143: "ended by SIGTERM; training saves a checkpoint first",
}
"""What the exit statuses of all commands mean."""

_Table = dict[str, tuple[str, Callable[[Any], None]]]
# As in detectron2.data.formats and detectron2.evaluation.analysis, which take seconds to import.
_FORMATS = ("coco", "voc", "yolo")
EXPORT_FORMATS = ("onnx", "openvino", "pt2", "aoti", "torchscript")  # as in detectron2.export.formats
_TASKS = ("bbox", "segm", "keypoints")
_SHELLS = ("bash", "zsh", "fish")
_SOURCE = (
    "a COCO .json file, a folder in Pascal VOC format (Annotations, ImageSets, JPEGImages), a folder or data.yaml in "
    "YOLO format, a folder of tar shards, or the name of a registered data set"
)


def parse(argv: list[str]) -> argparse.Namespace:
    """Parse a command line; the process ends after `--help` and after a mistake, with the usage of that command.

    Args:
        argv: the arguments behind the name of the program.

    Returns:
        The arguments; `command` is None where there is none, after `--version`, and else `action` may name a part.
    """
    if argv and argv[0] in _GROUPS:
        what, actions = _GROUPS[argv[0]]
        return _parse_one(f"detectron2 {argv[0]}", "action", actions, argv[1:], what, command=argv[0])
    return _parse_one("detectron2", "command", _COMMANDS, argv, _WHAT)


def build_parser() -> argparse.ArgumentParser:
    """Return one parser with all commands and their options, for shell completion and documentation."""
    parser, commands = _menu("detectron2", "command", _WHAT)
    for name, (text, add_arguments) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=_sentence(text))
        if name in _GROUPS:
            _, actions = _GROUPS[name]
            inner = command.add_subparsers(dest="action", metavar="ACTION", required=True)
            for action, (about, add_more) in actions.items():
                _fill(inner.add_parser(action, help=about, description=_sentence(about)), add_more)
        else:
            _fill(command, add_arguments)
    return parser


# What options are called by other programs, or by other commands of this one.
_SYNONYMS = {
    "--checkpoint": ("--weights",),
    "--conf": ("--confidence",),
    "--gpus": ("--num-gpus",),
    "--model": ("--weights", "--config-file"),
    "--score": ("--confidence",),
    "--score-threshold": ("--confidence", "--score"),
    "--threshold": ("--confidence", "--score-threshold", "--score"),
}


def _nearest(word: str, known: list[str]) -> list[str]:
    """Return what an unknown word may stand for: at most one of those that are known."""
    meant = [name for name in _SYNONYMS.get(word, ()) if name in known]
    return (meant or get_close_matches(word, known, n=1, cutoff=0.6))[:1]


class _Parser(argparse.ArgumentParser):
    """Names, in the message of a mistake, the nearest option or command that there is."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end the process with status 2."""
        words: list[str] = []
        known: Iterable[str] = []
        if message.startswith("unrecognized arguments: "):
            words = [w.partition("=")[0] for w in message.split()[2:] if w.startswith("-")]
            known = self._option_string_actions
        elif found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            words, known = [found[1]], re.findall(r"[\w-]+", found[2])
        near = [match for word in words for match in _nearest(word, list(known))]
        super().error(message + (f" (did you mean {', '.join(dict.fromkeys(near))}?)" if near else ""))


def _parse_one(prog: str, dest: str, table: _Table, argv: list[str], what: str, **known: str) -> argparse.Namespace:
    """Parse the words of one of the commands in a table, or show which there are."""
    if argv and argv[0] in table:
        text, add_arguments = table[argv[0]]
        parser = _Parser(f"{prog} {argv[0]}", description=_sentence(text))
        _fill(parser, add_arguments)
        args = parser.parse_intermixed_args(_protect(argv[1:]), argparse.Namespace(**known, **{dest: argv[0]}))
        for name, value in vars(args).items():
            setattr(args, name, _unprotect(value))
        return args
    menu, commands = _menu(prog, dest, what, is_required=bool(known))
    for name, (text, _) in table.items():
        commands.add_parser(name, help=text)
    args = menu.parse_args(argv)
    return argparse.Namespace(command=None, parser=menu, version=args.version)


def _menu(prog: str, dest: str, what: str, is_required: bool = False) -> tuple[argparse.ArgumentParser, Any]:
    """Make a parser for the first word, and the place for commands in it."""
    statuses = "; ".join(f"{status}: {text}" for status, text in EXIT_STATUSES.items())
    menu = _Parser(prog, description=what, epilog=f"Exit statuses: {statuses}.")
    if not is_required:
        menu.add_argument("--version", action="store_true", help="print the version and exit")
    return menu, menu.add_subparsers(dest=dest, metavar=dest.upper(), required=is_required)


def _fill(parser: argparse.ArgumentParser, add_arguments: Callable[[Any], None]) -> None:
    add_arguments(parser.add_argument)
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _protect(words: Sequence[str]) -> list[str]:
    """Put a space before negative numbers such as -1e-3, which argparse takes for options otherwise."""
    return [
        f" {word}" if re.fullmatch(r"-(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|-\.?inf", word, re.I) else word
        for word in words
    ]


def _unprotect(value: Any) -> Any:
    if isinstance(value, list):
        return [_unprotect(item) for item in value]
    return value[1:] if isinstance(value, str) and value.startswith(" -") else value


# Each of these gets the method `add_argument` of a parser.


def _add_config(add: Any, is_required: bool, words: str = "opts", words_help: str = "") -> None:
    """Add the options with which a config is chosen and changed; `words` receives what belongs to no option."""
    file = "a YAML or LazyConfig file, or its name in the model zoo"
    add("--config-file", required=is_required, metavar="FILE", help=file)
    add("--verbose", action="store_true", help="show all that log.txt gets: environment, config, model")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 ...; default: the one of the config")
    text = f"{words_help}changes to the config: pairs KEY VALUE for YAML, path.key=value for LazyConfig"
    add(words, nargs="*", metavar="CHANGE" if words == "opts" else words.upper(), help=text)


def _add_datasets(add: Any, classes: str = "") -> None:
    """Add the options that register data sets without a line of code, for DATASETS.TRAIN and DATASETS.TEST."""

    def add_many(name: str, metavar: Any, text: str, **options: Any) -> None:
        add(name, action="append", default=[], metavar=metavar, help=text, **options)

    coco = "register a data set, for DATASETS.TRAIN or DATASETS.TEST: COCO format, with its folder of images"
    add_many("--coco", ("NAME", "JSON", "IMAGES"), coco, nargs=3)
    voc = "the same in Pascal VOC format: ROOT/{Annotations,ImageSets/Main/SPLIT.txt,JPEGImages}"
    add_many("--voc", ("NAME", "ROOT", "SPLIT"), voc, nargs=3)
    shards = "the same in tar shards of 'detectron2 data shard': a folder, or an address such as s3://BUCKET/FOLDER"
    add_many("--tar-shards", ("NAME", "DIR"), shards, nargs=2)
    names = "class names of the --voc data sets, in order; default: as in the weights, else all annotated, sorted"
    add("--classes", metavar="A,B,C", help=classes or names)
    module = "a module or .py file to import first, for data sets and models of your own"
    add_many("--import", "MODULE", module, dest="imports")


def _demo(add: Any) -> None:
    add("--output", default="output/demo", metavar="DIR", help="where everything goes")
    add("--resume", action="store_true", help="continue an earlier run instead of starting clean")
    add("--iters", type=int, metavar="N", help="train N iterations instead of those of the config")
    add("--pictures", type=int, default=12, metavar="N", help="held-out images to draw")
    add("opts", nargs="*", metavar="CHANGE", help="changes to the config: pairs KEY VALUE")


def _train(add: Any) -> None:
    _add_config(add, is_required=True)
    _add_datasets(add)
    add("--output", metavar="DIR", help="output folder; default: the one of the config")
    add("--resume", action="store_true", help="continue from the last checkpoint in the output folder")
    add("--overwrite", action="store_true", help="train anew where an earlier training has left results")
    add("--auto-batch", action="store_true", help="train with the largest batch that fits into the memory of the GPUs")
    add("--scale-lr", action="store_true", help="with --auto-batch: scale SOLVER.BASE_LR with the batch (linear rule)")
    add("--num-gpus", type=int, default=1, help="processes on each machine, one GPU each")
    add("--num-machines", type=int, default=1, help="total number of machines")
    add("--machine-rank", type=int, default=0, help="which machine this is, from 0")
    add("--dist-url", default="auto", help="where processes meet: tcp://MACHINE0:PORT")


def _eval(add: Any) -> None:
    _add_config(add, is_required=False)
    _add_datasets(add)
    add("--weights", default="", metavar="FILE", help="a checkpoint; default: that of the config")
    add("--output", metavar="DIR", help="where logs and results.json go; default: beside the weights")
    predictions = "folder that 'predict --shards DIR --confidence 0' wrote on the test data; the model is not run"
    add("--predictions", metavar="DIR", help=predictions)
    add("--analyze", action="store_true", help="also say what goes wrong and where, as 'detectron2 analyze' does")


def _predict(add: Any) -> None:
    inputs = "images, videos, patterns, addresses, webcam:0, or folders, whose sub-folders are searched, too; also "
    _add_config(add, False, "image", inputs)
    kept = "keep only objects and pixels of these classes; with --voc instead: the class names of that data set"
    _add_datasets(add, kept)
    weights = "a checkpoint, or the folder of an exported model; default: that of the config"
    add("--weights", default="", metavar="FILE", help=weights)
    add("--input", nargs="+", default=[], metavar="PATH", help="further images, videos, patterns or folders")
    add("--output", metavar="DIR", help="where all results go; default: predictions")
    add(
        "--confidence",
        type=_share,
        default=0.5,
        metavar="SCORE",
        help="least score of what is drawn and written; default: 0.5",
    )
    add("--save", choices=("png", "jpg", "svg", "pdf", "none"), help="format of pictures; default: png")
    add("--color-by", choices=("instance", "class"), help="what has a colour of its own; default: instance")
    add("--json", action=argparse.BooleanOptionalAction, default=True, help="write predictions.json, in COCO format")
    add("--csv", action="store_true", help="write predictions.csv, a row an object, and counts.csv, a row an image")
    add("--crops", action="store_true", help="write the part of the image in each box into crops/CLASS")
    add("--track", action="store_true", help="number the objects in videos, so that each keeps its number")
    add("--resume", action="store_true", help="predict only on what an earlier run has not finished")
    shards = "for very many images: write results only, in shards, by any number of processes under torchrun or SLURM; "
    add("--shards", metavar="DIR", help=shards + "also takes lists (.txt) and .tar archives of images")
    add("--shard-size", type=_at_least_one, metavar="N", help="images of a shard; default: 500")
    add("--shard-format", choices=("jsonl", "parquet"), help="of a shard; default: jsonl")
    add(
        "--batch",
        type=_at_least_one,
        metavar="N",
        help="images that the model gets at once; default: 8 on a GPU, else 1",
    )
    precision = "numbers that the model computes with; default: fp32"
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help=precision)
    backend = "compiled: torch.compile, whose first images take a minute; exported models have their own"
    add("--backend", choices=("torch", "compiled"), default="torch", help=backend)
    add("--tta", action="store_true", help="test-time augmentation: also on the copies that TEST.AUG describes")
    add("--tile", type=_at_least_one, metavar="PIXELS", help="cut large images into tiles of this side, such as 1024")
    add("--overlap", type=_share, metavar="SHARE", help="of neighbouring tiles; default: 0.2")
    add("--workers", type=int, default=2, metavar="N", help="threads that read images; default: 2")


def _at_least_one(text: str) -> int:
    """Return a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, not {text!r}")
    return int(text)


def _serve(add: Any) -> None:
    _add_config(add, is_required=False)
    module = "a module or .py file to import first, for models of your own"
    add("--import", action="append", default=[], metavar="MODULE", dest="imports", help=module)
    weights = "a checkpoint, or the folder of an exported model; default: that of the config"
    add("--weights", default="", metavar="FILE", help=weights)
    host = "address to listen at; 0.0.0.0 for all of this machine; default: 127.0.0.1, for this machine alone"
    add("--host", default="127.0.0.1", metavar="ADDRESS", help=host)
    add("--port", type=_port, default=8000, metavar="N", help="0 takes a free one; default: 8000")
    add("--confidence", type=_share, default=0.05, metavar="SCORE", help="least that can be asked for; default: 0.05")
    batch = "images that the model gets at once; default: 8 on a GPU, else 1"
    add("--batch", type=_at_least_one, metavar="N", help=batch)
    add("--window", type=_not_negative, default=5.0, metavar="MS", help="wait for others of a batch; default: 5")
    add("--workers", type=_at_least_one, default=4, metavar="N", help="threads that decode and draw; default: 4")
    precision = "numbers that the model computes with; default: fp32"
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help=precision)
    backend = "compiled: torch.compile, whose first images take a minute; exported models have their own"
    add("--backend", choices=("torch", "compiled"), default="torch", help=backend)
    requests = "in progress at once, further ones are told to come again; default: 64"
    add("--max-requests", type=_at_least_one, default=64, metavar="N", help=requests)
    add("--max-megabytes", type=_positive, default=20.0, metavar="MB", help="of a request; default: 20")
    add("--max-megapixels", type=_positive, default=50.0, metavar="MP", help="of an image; default: 50")
    add("--timeout", type=_positive, default=30.0, metavar="SECONDS", help="of a request; default: 30")
    urls = "also take addresses of images, which the service downloads; not from private networks"
    add("--allow-urls", action="store_true", help=urls)
    add("--allow-private-urls", action="store_true", help="also those in private networks and on this machine")


def _benchmark(add: Any) -> None:
    _add_config(add, is_required=False)
    _add_datasets(add)
    add("--weights", default="", metavar="FILE", help="a checkpoint; default: random weights")
    data = "a registered data set; default: those of the config, or generated images where they are not there"
    add("--data", default="", metavar="DATASET", help=data)
    batch = "images in a batch; default: of training that of the config, of inference 1"
    add("--batch", type=_at_least_one, metavar="N", help=batch)
    iterations = "of each measurement; default: as many as some seconds allow"
    add("--iters", type=_at_least_one, metavar="N", help=iterations)
    add("--json", metavar="FILE", help="also write the numbers there")


def _export(add: Any) -> None:
    _add_config(add, is_required=False)
    _add_datasets(add)
    add("--weights", default="", metavar="FILE", help="a checkpoint; default: that of the config")
    formats = f"{{{','.join(EXPORT_FORMATS)}}}"  # of others export_model says the way
    add("--format", required=True, metavar=formats, help="onnx and openvino run without PyTorch")
    add("--output", required=True, metavar="DIR", help="folder for the model, model.json and predict.py")
    dynamic = "what may differ from image to image: batch, size, batch,size or none; default: all that the format can"
    add("--dynamic", type=_sizes_left_open, metavar="batch,size|none", help=dynamic)
    size = "pixels of the batch that the model is traced with, and of all images if the size is not dynamic"
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help=size)
    outputs = "the same number of rows for each image and a count (default), or one list of all detections"
    add("--outputs", choices=("padded", "flat"), default="padded", help=outputs)
    masks = "probabilities in the box (default), or pixels of the input"
    add("--masks", choices=("raw", "pasted"), default="raw", help=masks)
    add("--max-detections", type=_at_least_one, metavar="N", help="rows of an image; default: as in the config")
    threshold = "default of the model's input with this name; default: as in the config"
    add("--score-threshold", type=_share, metavar="SCORE", help=threshold)
    precision = "numbers in backbone and heads; fp16 and int8 are for onnx and openvino; default: fp32"
    add("--precision", choices=("fp32", "fp16", "int8"), default="fp32", help=precision)
    calibration = "registered data set or folder of images that int8 takes its ranges from"
    add("--calibration", metavar="DATA", help=calibration)
    evaluate = "registered data set on which to measure average precision and time, of the model and of what is written"
    add("--evaluate", metavar="DATASET", help=evaluate)
    loss = "points of average precision that fp16 and int8 may lose; default: 1.0"
    add("--allow-loss", type=_not_negative, default=1.0, metavar="AP", help=loss)
    add("--no-verify", action="store_true", help="do not compare what is written with the model")


def _push(add: Any) -> None:
    _add_config(add, is_required=False)
    _add_datasets(add)
    add("--weights", default="", metavar="FILE", help="a checkpoint; default: that of the config")
    licence = "of the weights, for the model card: an identifier of SPDX such as apache-2.0, or other"
    add("--licence", "--license", required=True, metavar="NAME", help=licence)
    add("--folder", metavar="DIR", help="a new folder, for weights and model card")
    add("--to", metavar="OWNER/NAME", help="send them to this model on the Hugging Face hub, which is made if needed")
    add("--private", action="store_true", help="with --to: others cannot see a model that is made")


def _sizes_left_open(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas; none for "none"."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if names == ("none",):
        return ()
    if not set(names) <= {"batch", "size"}:
        raise argparse.ArgumentTypeError(f"expected batch, size, both with a comma, or none, not {text!r}")
    return names


def _check(add: Any) -> None:
    add("source", nargs="*", metavar="DATA", help=_SOURCE + "; default: all data sets of the config")
    _add_reading(add)
    _add_data_config(add, "compare with the model of this config: classes, keypoints, masks")
    add("--num-classes", type=int, metavar="N", help="number of classes of the model")
    files = "how many image files to look at (headers only), evenly spaced; default: 10000"
    add("--files", type=_number_of_files, default=10_000, metavar="all|N|none", help=files)
    add("--fix", metavar="OUT.json", help="write a cleaned copy in COCO format; says what was changed")
    add("--json", action="store_true", help="print the report as JSON")


def _show(add: Any) -> None:
    add("source", metavar="DATA", help=_SOURCE)
    _add_reading(add)
    _add_data_config(add, "the config that --augmented takes the augmentations from")
    add("--augmented", action="store_true", help="as the model gets them in training")
    add("--num", type=int, default=16, metavar="N", help="how many; default: 16")
    add("--seed", type=int, default=0, help="of the choice of samples and of the augmentations; default: 0")
    add_place = add.__self__.add_mutually_exclusive_group().add_argument
    add_place("--output", metavar="DIR", help="write one picture for each sample into this folder")
    sheet = "write all into one picture; default: samples.png, without --output"
    add_place("--sheet", metavar="FILE.png", help=sheet)


def _convert(add: Any) -> None:
    add("source", metavar="SRC", help=_SOURCE)
    add("target", metavar="DST", help="a new folder; for COCO also a .json file")
    add("--from", dest="source_format", choices=_FORMATS, help="default: by what lies at SRC")
    add("--to", dest="target_format", choices=_FORMATS, help="default: coco if DST ends in .json")
    images = "copy images, link to them, or leave them where they are; default: link, or none if DST is a .json file"
    add("--images", choices=("copy", "link", "none"), help=images)
    _add_reading(add)
    _add_data_config(add, "the config whose INPUT.EXIF holds")


def _shard(add: Any) -> None:
    add("source", metavar="DATA", help=_SOURCE)
    add("--output", required=True, metavar="DIR", help="a new folder, after which the shards are named")
    size = "images of a shard; default: 1000, or no limit with --shard-bytes"
    add("--shard-size", type=_at_least_one, metavar="N", help=size)
    add("--shard-bytes", type=_at_least_one, metavar="N", help="a shard ends before it has more bytes than this")
    order = "do not shuffle the images, of which training takes those of one shard at one time"
    add("--keep-order", action="store_true", help=order)
    _add_reading(add)
    _add_data_config(add, "the config whose INPUT.EXIF holds")


def _add_reading(add: Any) -> None:
    """Add the options of how a data set is read."""
    add("--image-root", metavar="DIR", help="where the images of a COCO file are; default: near the file")
    add("--split", default="", help="the part of a VOC or YOLO folder to read, such as train; default: all")
    _add_exif(add)
    _add_datasets(add)


def _add_exif(add: Any) -> None:
    text = "turn images upright as their EXIF data say, or not; default: INPUT.EXIF of the config, else apply"
    add("--exif", choices=("apply", "ignore"), help=text)


def _add_data_config(add: Any, text: str) -> None:
    """Add the options with which a config is chosen, where that is not what the command is about."""
    add("--config-file", "--config", metavar="FILE", help=text)
    add("--opts", nargs="+", default=[], metavar="CHANGE", help="changes to the config: KEY VALUE ...")


def _share(text: str) -> float:
    """Return a score, an IoU or another number from 0 to 1."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, not {_unprotect(text)!r}")
    return share


def _port(text: str) -> int:
    """Return the number of a port."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 65535, not {_unprotect(text)!r}")
    return int(text)


def _not_negative(text: str) -> float:
    """Return a number from 0 on."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, not {_unprotect(text)!r}")
    return number


def _positive(text: str) -> float:
    """Return a number above 0."""
    if not (number := _not_negative(text)):
        raise argparse.ArgumentTypeError(f"expected a number above 0, not {text!r}")
    return number


def _number_of_files(text: str) -> int | None:
    """Return how many files; None for all."""
    if text in ("all", "none"):
        return None if text == "all" else 0
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected all, none or a number, not {text!r}")
    return int(text)


def _add_charts(add: Any) -> None:
    kinds = "format of the files with charts; svg and pdf stay sharp at any size; default: png"
    add("--charts", choices=("png", "svg", "pdf"), default="png", help=kinds)


def _analyze(add: Any) -> None:
    run_or_file = "output folder of a run; or a file with predictions, such as coco_instances_results.json"
    add("predictions", metavar="PREDICTIONS", help=run_or_file)
    truth = "ground truth: a registered data set, or a file in COCO format; default: the run's test data set"
    add("--data", metavar="DATA", help=truth)
    add("--images", metavar="DIR", help="folder of the images, for pictures; default: as registered")
    tasks = "bbox, segm or keypoints, or several; default: all that predictions and ground truth have"
    add("--task", nargs="+", choices=_TASKS, default=[], metavar="TASK", help=tasks)
    least = "least IoU (of keypoints OKS) of a match; default: 0.5"
    add("--iou", type=_share, default=0.5, metavar="IOU", help=least)
    add("--score", type=_share, default=0.5, metavar="SCORE", help="least score of what is counted; default: 0.5")
    add("--worst", type=int, default=8, metavar="N", help="number of pictures; default: 8")
    add("--compare", metavar="PREDICTIONS", help="those of an earlier run, to be compared with")
    resamples = "of the bootstrap for confidence intervals, 0 for none; default: 500"
    add("--resamples", type=int, default=500, metavar="N", help=resamples)
    add("--seed", type=int, default=0, metavar="N", help="of the bootstrap; default: 0")
    sigmas = "OKS sigma of each keypoint; default: those of the run's config, else of COCO's persons"
    add("--sigmas", metavar="A,B,C", help=sigmas)
    add("--output", metavar="DIR", help="where files go; default: 'analysis' in the run's folder, else here")
    _add_charts(add)
    _add_exif(add)
    _add_datasets(add)


def _plot(add: Any) -> None:
    add("runs", nargs="+", metavar="RUN", help="output folder of a run, or its metrics.json")
    shown = 'what to draw: names or patterns such as "bbox/*"; default: losses, main metrics, learning rate'
    add("--metrics", nargs="+", metavar="NAME", help=shown)
    add("--smooth", type=int, default=1, metavar="N", help="average N neighbouring points; default: 1")
    folder = "where curves.png and curves.html go; default: the run, or . for several runs"
    add("--output", metavar="DIR", help=folder)
    _add_charts(add)


_ANY_CONFIG = "config file, name in the model zoo, checkpoint, or output folder of a run"


def _config_show(add: Any) -> None:
    add("file", metavar="CONFIG", help=_ANY_CONFIG)
    add("opts", nargs="*", metavar="CHANGE", help="KEY VALUE pairs for YAML, path.key=value for LazyConfig")
    add("--changed", action="store_true", help="only what differs from the defaults; of YAML configs")


def _config_diff(add: Any) -> None:
    add("first", metavar="A", help=_ANY_CONFIG)
    add("second", metavar="B", help="the other one")


def _config_explain(add: Any) -> None:
    keys = "full name of a key, its last part, or the name of a group, in any case; default: list the groups"
    add("key", nargs="*", metavar="KEY", help=keys)


def _zoo_list(add: Any) -> None:
    add("filter", nargs="*", metavar="FILTER", help="words that name or task must have, such as: mask R_50")
    add("--json", action="store_true", help="print all that is known as JSON")


def _zoo_info(add: Any) -> None:
    add("name", nargs="+", metavar="NAME", help="name of a config in the model zoo")
    add("--json", action="store_true", help="print all that is known as JSON")


def _zoo_download(add: Any) -> None:
    add("name", nargs="+", metavar="NAME", help="name of a config in the model zoo that has weights")
    add("--force", action="store_true", help="download again what is in the cache")


def _completion(add: Any) -> None:
    add("shell", choices=_SHELLS, metavar="SHELL", help=", ".join(_SHELLS))


_ACTIONS: _Table = {
    "check": ("look for mistakes; the exit status is 1 if there are any that training would stumble over", _check),
    "show": ("draw samples with their annotations, as they are or as a model gets them", _show),
    "convert": ("convert a data set between the formats of COCO, Pascal VOC and YOLO", _convert),
    "shard": ("write a data set into tar shards, with its images, for data sets of very many files", _shard),
}
_ZOO_ACTIONS: _Table = {
    "list": ("list the models of the model zoo with their published accuracy", _zoo_list),
    "info": ("say what is known about a model: accuracy, speed, weights, licence, commands that use it", _zoo_info),
    "download": ("download trained weights into the cache, and print where they are", _zoo_download),
}
_CONFIG_ACTIONS: _Table = {
    "show": ("print a config of any kind as YAML that can be read again", _config_show),
    "diff": ("print the keys in which two configs differ", _config_diff),
    "explain": (
        "say what keys of YAML configs mean, with type, default and unit, and what reads them",
        _config_explain,
    ),
}
_WHAT = "Object detection and segmentation on PyTorch."
_GROUPS: dict[str, tuple[str, _Table]] = {
    "data": ("Check, show, convert or shard a data set.", _ACTIONS),
    "config": ("Show, compare or explain configs.", _CONFIG_ACTIONS),
    "zoo": ("List, describe or download the models of the model zoo.", _ZOO_ACTIONS),
}
_COMMANDS: _Table = {
    "demo": ("train a small Mask R-CNN on generated data, evaluate it and write a report", _demo),
    "train": ("train the model of a config", _train),
    "eval": ("evaluate a trained model", _eval),
    "predict": ("predict on images and videos; writes pictures, JSON and tables", _predict),
    "benchmark": ("measure data, training and inference of a model here, and say what holds them back", _benchmark),
    "export": ("write a trained model in a format that other programs run, and check what was written", _export),
    "push": ("write a model with its licence and results into a folder, and send it to the Hugging Face hub", _push),
    "serve": ("predict on images that are sent over HTTP, with a page to try it on", _serve),
    "data": ("check, show, convert or shard a data set", lambda add: None),
    "analyze": ("show what a detector does well and badly, from saved predictions", _analyze),
    "plot": ("draw the curves of training runs", _plot),
    "config": ("show, compare or explain configs", lambda add: None),
    "zoo": ("list, describe or download the models of the model zoo", lambda add: None),
    "env": ("show versions and devices, for bug reports", lambda add: None),
    "completion": ("print a script that completes commands and options in a shell", _completion),
}
