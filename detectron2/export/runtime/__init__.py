"""Running an exported model without PyTorch: from an image to results, with NumPy, Pillow and the model's runtime.

An export puts `standalone_source()` beside the model, as `predict.py`.
"""

from pathlib import Path

__all__ = ["standalone_source"]

# Each needs only those before it.
_MODULES = ("images", "resizing", "mask_classification", "results", "drawing", "predict")


def standalone_source() -> str:
    """Return the modules of this package as the text of one program, which needs neither PyTorch nor Detectron2.

    Returns:
        Python code, to be written beside the model as `predict.py`.

    Example:
        >>> from detectron2.export.runtime import standalone_source
        >>> standalone_source().splitlines()[0]
        '#!/usr/bin/env python'
    """
    texts = {name: Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in _MODULES}
    opening, separator, rest = texts.pop("predict").partition("import argparse\n")
    bodies = [*texts.values(), separator + rest]
    lines = [line for body in bodies for line in body.splitlines() if not line.startswith("from .")]
    return opening + "\n".join(lines) + "\n"
