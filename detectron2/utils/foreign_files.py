"""Recognise, by their content, files that are given in place of a config or of weights."""

import os
import re
import zipfile
from collections.abc import Sequence

__all__ = ["recognise"]

_REFETCH = "A download or copy left it in place of the file: fetch that again."
_EXPORTED = "Give the checkpoint that it was made from; or, to predict, the folder that 'detectron2 export' wrote."
_MOVING = "docs/moving.md says what takes its place here."
_PICTURE = "Images are named without an option."
_ARCHIVE = "Unpack it, and give the file in it."

# How a file begins -> what it is, and what to do.
_BEGINNINGS: Sequence[tuple[bytes, str, str]] = (
    (rb"\xff\xd8\xff", "a JPEG picture", _PICTURE),
    (rb"\x89PNG", "a PNG picture", _PICTURE),
    (rb"GIF8", "a GIF picture", _PICTURE),
    (rb"BM.{4}\0{4}", "a BMP picture", _PICTURE),
    (rb"RIFF.{4}WEBP", "a WebP picture", _PICTURE),
    (rb"II\*\0|MM\0\*", "a TIFF picture", _PICTURE),
    (rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3", "a video", "Videos are named without an option."),
    (rb"%PDF", "a PDF document", ""),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|(?s:.{257})ustar", "an archive", _ARCHIVE),
    (rb"\x89HDF", "an HDF5 file, as Keras writes", "Weights of Keras are not read."),
    (rb".{4}TFL3", "a model of TensorFlow Lite", _EXPORTED),
    (rb"\x08[\x01-\x20][\x12\x1a:]", "an ONNX model", _EXPORTED),
    (rb"version https://git-lfs", "a pointer of Git LFS", "Fetch the file that it stands for: git lfs pull."),
    (rb"(?i)\s*<(!doctype html|html|head)", "a web page", _REFETCH),
    (rb"\s*<\?xml", "an XML file", ""),
)
# What the beginning of a text has in it -> the same.
_TEXTS: Sequence[tuple[str, str, str]] = (
    (
        r'\A\s*\{.*"(images|annotations|categories)"\s*:\s*\[',
        "a JSON file with annotations",
        "Annotations are given with --coco NAME FILE IMAGES.",
    ),
    (r"\A\s*\[\s*\{", "a JSON file with a list, as of predictions", ""),
    (
        r'\A\s*\{.*"(model_type|architectures)"\s*:',
        "a config of Hugging Face transformers",
        "A config of this library names its folder as MODEL.HF.CONFIG: docs/tutorials/transformers_models.md.",
    ),
    (r"^nc\s*:", "a YAML file of Ultralytics", _MOVING),
    (r"\A(?=.*^names\s*:).*^(train|val)\s*:[ \t]*[^\s{]", "a YAML file of Ultralytics", _MOVING),
    (r"^_base_\s*=|^model\s*=\s*dict\(\s*type\s*=", "a config of MMDetection", _MOVING),
)
_HEAD = 1 << 16  # bytes


def recognise(path: str) -> tuple[str, str] | None:
    """Say what a file or folder is, if it is neither a config nor weights that this library reads.

    Args:
        path: of a file or folder that exists.

    Returns:
        What it is, such as `"a JPEG picture"`, and a sentence (or "") that says what to do with it; `None` for a file
        that may be a config or a checkpoint.

    Example:
        >>> recognise(__file__) is None
        True
    """
    if os.path.isdir(path):
        return "a folder", "Give a file in it."
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head.startswith(b"PK\x03\x04"):
        return _recognise_zip(path)
    found = next((row[1:] for row in _BEGINNINGS if re.match(row[0], head, re.DOTALL)), None)
    if found or b"\0" in head:
        return found
    text = head.decode("utf-8", "replace")
    return next((row[1:] for row in _TEXTS if re.search(row[0], text, re.DOTALL | re.MULTILINE)), None)


def _recognise_zip(path: str) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError):
        return None  # a damaged one, of which its reader says more
    ends = {name.partition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return "an exported TorchScript program", _EXPORTED
    if "archive_format" in ends:
        return "a program of torch.export", _EXPORTED
    if "data.pkl" in ends:
        return None
    return f"a zip archive with {', '.join(names[:3]) or 'nothing'}{', ...' if names[3:] else ''}", _ARCHIVE
