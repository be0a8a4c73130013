"""The values that the numbers in a config may have: one table, read before anything is built.

Names (of registries, kinds of losses and the like) are checked where they are looked up, because projects add their
own; the names here are those of the optional keys.
"""

import math
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import Any

import torch
from yacs.config import CfgNode

import detectron2.config.defaults as defaults
from detectron2.config.merge import iter_leaves
from detectron2.config.optional_keys import OPTIONAL_KEYS

__all__ = ["changed_keys_in", "check_values", "requirement", "value_problem"]

_Rule = tuple[str, Callable[[Any], bool]]  # what a value, or each item of a list, must be


def _whole(low: int, high: int = 2**63 - 1) -> _Rule:
    text = f"a whole number from {low} to {high}" if high < 2**63 - 1 else f"a whole number of at least {low}"
    return text, lambda n: isinstance(n, Integral) and low <= int(n) <= high


def _one_of(*names: str) -> _Rule:
    return f"one of {', '.join(names)}", names.__contains__


def _is_device(value: Any) -> bool:
    try:
        return bool(torch.device(value))
    except (RuntimeError, TypeError):
        return False


_SIZE = _whole(1, 10**6)
_SIZE_HW = re.compile(r"[1-9]\d{0,5}x[1-9]\d{0,5}")
_ABOVE_0: _Rule = ("a number above 0", lambda n: n > 0)
_AT_LEAST_0: _Rule = ("a number of at least 0", lambda n: n >= 0)
_BELOW_1: _Rule = ("a number in [0, 1)", lambda n: 0 <= n < 1)
_RULES: tuple[tuple[_Rule, str], ...] = (
    (_SIZE, "*CHANNELS *_DIM *.CONVS_DIM MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS *.POOLER_RESOLUTION SOLVER.IMS_PER_BATCH"),
    (_SIZE, "*NUM_CLASSES *.NUM_KEYPOINTS *NUM_GROUPS *.WIDTH_PER_GROUP *_DILATION *.COMMON_STRIDE"),
    (_whole(0, 1000), "*.NUM_CONV *.NUM_CONVS *.NUM_FC DATALOADER.NUM_WORKERS MODEL.TIMM.PATCH_SIZE"),
    (_whole(0), "SOLVER.MAX_ITER SOLVER.REFERENCE_WORLD_SIZE *TOPK_*"),
    (_whole(1), "*.BATCH_SIZE_PER_IMAGE SOLVER.CHECKPOINT_PERIOD SOLVER.NUM_DECAYS TEST.PRECISE_BN.NUM_ITER"),
    (_whole(1), "SOLVER.ACCUMULATION_STEPS TRAIN.MAX_SKIPPED_IN_A_ROW"),
    (_whole(0), "SOLVER.CHECKPOINTS_TO_KEEP TEST.VALIDATION_LOSS_PERIOD TEST.EARLY_STOPPING_PATIENCE"),
    (("-1 or a whole number above 0", lambda n: n == -1 or _SIZE[1](n)), "MODEL.RPN.CONV_DIMS"),
    (_ABOVE_0, "*.SIZES *.ASPECT_RATIOS *.PIXEL_STD *.BBOX_REG_WEIGHTS *.MAX_SIZE* INPUT.CROP.SIZE *.NORM_TYPE"),
    (_AT_LEAST_0, "SOLVER.BASE_LR* SOLVER.GAMMA SOLVER.WEIGHT_DECAY* SOLVER.*_LR_FACTOR *STEPS *_EPOCHS"),
    (_AT_LEAST_0, "SOLVER.WARMUP_[FI]* *.CLIP_VALUE INPUT.MIN_SIZE_TEST INPUT.MIN_SIZE_TRAIN TEST.AUG.MIN_SIZES"),
    (_BELOW_1, "MODEL.ANCHOR_GENERATOR.OFFSET MODEL.TIMM.DROP_PATH_RATE SOLVER.BETAS SOLVER.EMA_DECAY SOLVER.MOMENTUM"),
    (("a number from 0 to 1", lambda n: 0 <= n <= 1), "*.POSITIVE_FRACTION"),
    (("a number between 0 and 1", lambda n: 0 < n < 1), "*.PRIOR_PROB"),
    (("a number above 0, in ascending order", lambda n: n > 0), "*.IOU_THRESHOLDS"),
    (("-1, 0 or 1", lambda n: n in (-1, 0, 1)), "*.IOU_LABELS"),
    (("true or false", lambda x: isinstance(x, (bool, int))), "*.DEFORM_ON_PER_STAGE"),
    (("a name", lambda x: isinstance(x, str)), "MODEL.META_ARCHITECTURE MODEL.*NAME *.IN_FEATURES *.OUT_FEATURES"),
    (("a name", lambda x: isinstance(x, str)), "DATASETS.TRAIN DATASETS.TEST"),
    (("a name, or empty", lambda x: x is None or isinstance(x, str)), "*.NORM INPUT.FORMAT"),
    (("a device such as cpu, cuda or cuda:1", _is_device), "MODEL.DEVICE"),
    (("empty, or one of highest, high, medium", ("", "highest", "high", "medium").__contains__), "FLOAT32_PRECISION"),
    (("true, false or null", lambda x: isinstance(x, bool)), "TRAIN.CHANNELS_LAST SOLVER.FUSED"),
    (_one_of("pth", "safetensors"), "SOLVER.CHECKPOINT_FORMAT"),
    (_one_of("full", "sharded", "sharded_async"), "SOLVER.CHECKPOINT_LAYOUT"),
    (_one_of("stop", "skip"), "TRAIN.ON_NONFINITE_LOSS DATALOADER.ON_BAD_IMAGE"),
    (_one_of("max", "min"), "TEST.BEST_MODE"),
    (("a height and a width such as 800x1344", lambda x: _SIZE_HW.fullmatch(str(x)) is not None), "TRAIN.PAD_TO"),
    (("empty, bfloat16 or float16", ("", "bfloat16", "float16").__contains__), "SOLVER.AMP_DTYPE"),
    (("empty, bf16 or fp16", ("", "bf16", "fp16").__contains__), "TRAIN.GRADIENT_COMPRESSION"),
)
_LENGTHS = {
    "*.DEFORM_ON_PER_STAGE": (4,),
    "*.BBOX_REG_WEIGHTS": (4, 5),
    "INPUT.CROP.SIZE": (2,),
    "SOLVER.BETAS": (2,),
}  # of the innermost lists
_MAY_BE_EMPTY = (
    "SOLVER.STEPS MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS SOLVER.STEP_EPOCHS MODEL.FPN.IN_FEATURES DATASETS.* TRAIN.PAD_TO "
    "MODEL.TIMM.OUT_FEATURES MODEL.TRANSFORMERS.OUT_FEATURES"
)
_MAY_BE_INFINITE = "*.NORM_TYPE *THRESH*"
_MAY_BE_NONE = "SOLVER.WEIGHT_DECAY_NORM SOLVER.BIAS_LR_FACTOR SEED"  # and what is None or unset by default
_UNCHECKED = "GLOBAL.HACK VERSION"

# The groups that models of the library do not read, by META_ARCHITECTURE: what stands there does not matter.
_UNREAD = {
    "GeneralizedRCNN": "MODEL.RETINANET.* MODEL.SEM_SEG_HEAD.[!I]* MODEL.PANOPTIC_FPN.*",
    "ProposalNetwork": "MODEL.RETINANET.* MODEL.SEM_SEG_HEAD.[!I]* MODEL.PANOPTIC_FPN.* MODEL.ROI_*",
    "PanopticFPN": "MODEL.RETINANET.*",
    "RetinaNet": "MODEL.RPN.* MODEL.ROI_* MODEL.SEM_SEG_HEAD.[!I]* MODEL.PANOPTIC_FPN.*",
    "SemanticSegmentor": "MODEL.RPN.* MODEL.ROI_* MODEL.RETINANET.* MODEL.PANOPTIC_FPN.* MODEL.ANCHOR_GENERATOR.*",
}

# The parts that encode upright boxes, by the key that names them; others may be made for rotated ones.
_UPRIGHT = {
    "MODEL.RPN.BBOX_REG_WEIGHTS": ("MODEL.PROPOSAL_GENERATOR.NAME", ("RPN",)),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": ("MODEL.ROI_HEADS.NAME", ("StandardROIHeads", "Res5ROIHeads")),
}


def check_values(cfg: Any, groups: str = "*") -> None:
    """Raise a `ValueError` that names every key of a config with an impossible value, and what it must be.

    Looked at are the keys that match one of the patterns in `groups`, such as `"MODEL.* INPUT.*"`, without those of
    projects and those that the model of `META_ARCHITECTURE` does not read. A LazyConfig has none of these keys.
    """
    if not isinstance(cfg, CfgNode):
        return
    known, values = {**dict(iter_leaves(defaults._C)), **OPTIONAL_KEYS}, dict(iter_leaves(cfg))
    unread = _unread_of(values)
    values = {path: value for path, value in values.items() if path in known}
    values = {path: value for path, value in values.items() if _is_in(path, groups) and not _is_in(path, unread)}
    found = {path: value_problem(path, known[path], value) for path, value in values.items()}
    for path, value in values.items():  # norm "GN" divides the channels of its group of keys into 32 groups
        norm = f"{path.rpartition('.')[0]}.NORM"
        if values.get(norm) == "GN" and _is_in(path, "*OUT_CHANNELS *.CONV*_DIM") and not found[path] and value % 32:
            found[path] = f"must be a multiple of 32, because {norm} is 'GN', but is {value!r}"
    path = "TEST.EXPECTED_RESULTS"  # read after training
    if not all(map(_is_expectation, values.get(path, ()))):
        found[path] = f"must be a list of [task, metric, expected value, tolerance], but is {values[path]!r}"
    for path, (key, names) in _UPRIGHT.items():
        if not found.get(path) and values.get(key) in names and len(values.get(path, "four")) != 4:
            found[path] = f"must be a list of 4 items, because {key} is {values[key]!r}, but is {values[path]!r}"
    sgd = str(values.get("SOLVER.OPTIMIZER", "SGD")).upper() == "SGD"
    if sgd and values.get("SOLVER.NESTEROV") and values.get("SOLVER.MOMENTUM") == 0:
        found["SOLVER.NESTEROV"] = f"must be False where SOLVER.MOMENTUM is 0, but is {values['SOLVER.NESTEROV']!r}"
    if lines := [f"{path} {text}" for path, text in found.items() if text]:
        raise ValueError(f"The config has an impossible value: {'; '.join(lines)}.")


def _is_expectation(entry: Any) -> bool:
    """Whether an entry looks like `["bbox", "AP", 38.5, 0.2]`."""
    if not isinstance(entry, (list, tuple)) or len(entry) != 4:
        return False
    *names, value, tolerance = entry
    return all(isinstance(name, str) for name in names) and all(_is_number(x) for x in (value, tolerance))


def _unread_of(values: dict[str, Any]) -> str:
    """Return patterns of the keys that the model of a config does not read."""
    unread = _UNREAD.get(str(values.get("MODEL.META_ARCHITECTURE")), "")
    unread += "" if values.get("MODEL.MASK_ON") else " MODEL.ROI_MASK_HEAD.*"
    return unread + ("" if values.get("MODEL.KEYPOINT_ON") else " MODEL.ROI_KEYPOINT_HEAD.*")


def changed_keys_in(cfg: CfgNode, text: str) -> list[str]:
    """Return the keys of a model that an error message may be about, with their values, such as `MODEL.FPN.NORM 'XX'`.

    They are those that are not as in the defaults and have a value that is part of the text: a name in quotes, a list,
    or a whole number from 3 on. There are none where the text names a key itself.
    """
    known, values = {**dict(iter_leaves(defaults._C)), **OPTIONAL_KEYS}, dict(iter_leaves(cfg))
    if any(path in text for path in values):
        return []
    unread = _unread_of(values)
    changed = {path: value for path, value in values.items() if path not in known or known[path] != value}
    return [
        f"{path} {value!r}"
        for path, value in changed.items()
        if _is_in(path, "MODEL.*") and not _is_in(path, unread) and _is_part(value, text, path in known)
    ]


def _is_part(value: Any, text: str, is_known: bool) -> bool:
    """Whether a value is in a text; numbers of projects, whose defaults are not known, are not looked for."""
    if isinstance(value, (list, tuple)):
        return bool(value) and (repr(list(value)) in text or repr(tuple(value)) in text)
    if isinstance(value, str):
        return bool(value) and repr(value) in text
    is_number = is_known and isinstance(value, int) and value >= 3
    return is_number and re.search(rf"(?<![\w.]){value}(?![\w.]*\w)", text) is not None


def value_problem(path: str, default: Any, value: Any) -> str:
    """Return what is wrong with the value of a key, such as "must be a number above 0, but is -1", or an empty text."""
    text, is_valid = _rule_of(path)
    is_number, items = _is_numeric(default, text), list(_items(value))
    is_none_valid = default is None or (path in OPTIONAL_KEYS and not default) or _is_in(path, _MAY_BE_NONE)
    if not (is_number or text) or (value is None and is_none_valid) or _is_in(path, _UNCHECKED):
        return ""
    is_right = _depth(value) == 0 if not isinstance(default, (list, tuple)) else 0 < _depth(value) <= _depth(default)
    if is_number:
        may_be_infinite = _is_in(path, _MAY_BE_INFINITE)
        is_right = is_right and all(_is_number(x) and _is_bounded(x, may_be_infinite) for x in items)
        if isinstance(default, int):
            is_right = is_right and all(float(x).is_integer() for x in items)
    if isinstance(default, (list, tuple)):
        lengths, least = _lengths_of(path)
        is_right = is_right and all(len(x) in lengths if lengths else len(x) >= least for x in _innermost(value))
    is_right = is_right and all(map(is_valid, items))
    return "" if is_right else f"must be {requirement(path, default)}, but is {value!r}"


def requirement(path: str, default: Any) -> str:
    """Return what the value of a key must be, such as "a number above 0"; empty for a key that is not checked.

    >>> requirement("SOLVER.BASE_LR", 0.001)
    'a number of at least 0'
    """
    text, _ = _rule_of(path)
    is_number = _is_numeric(default, text)
    if not (is_number or text) or _is_in(path, _UNCHECKED):
        return ""
    if is_number and isinstance(default, int):
        text = text or "a whole number"
    text = text or "a finite number"
    if not isinstance(default, (list, tuple)):
        return text
    lengths, least = _lengths_of(path)
    number = f"{' or '.join(map(str, lengths))} items" if lengths else "items" if least == 0 else "one or more items"
    return f"a list of {number}, each {text}"


def _rule_of(path: str) -> _Rule:
    return next((rule for rule, keys in _RULES if _is_in(path, keys)), ("", lambda x: True))


def _is_numeric(default: Any, text: str) -> bool:
    """Whether the value of a key, or each item of it, is a number; `text` is that of its rule."""
    usual = [x for x in _items(default) if x is not None]
    return all(map(_is_number, usual)) and (bool(usual) or text.startswith(("a number", "a whole number")))


def _lengths_of(path: str) -> tuple[tuple[int, ...], int]:
    """Return the lengths that the innermost lists may have, empty for any, and the least one."""
    lengths = next((numbers for keys, numbers in _LENGTHS.items() if _is_in(path, keys)), ())
    return lengths, 0 if _is_in(path, _MAY_BE_EMPTY) else 1


def _depth(value: Any) -> int:
    """Return how many lists are nested, at most: 0 for what is not a list."""
    return 1 + max(map(_depth, value), default=0) if isinstance(value, (list, tuple)) else 0


def _innermost(value: Any) -> list[Any]:
    """Return the lists within a list that hold no lists themselves, or the list."""
    inner = [x for x in value if isinstance(x, (list, tuple))]
    return [y for x in inner for y in _innermost(x)] if inner else [value]


def _items(value: Any) -> Iterator[Any]:
    """Yield what lies in nested lists, or the value itself."""
    if isinstance(value, (list, tuple)):
        for x in value:
            yield from _items(x)
    else:
        yield value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_bounded(value: Any, may_be_infinite: bool) -> bool:
    if isinstance(value, Integral):
        return abs(int(value)) < 2**63
    return math.isfinite(value) or (may_be_infinite and math.isinf(value))


def _is_in(path: str, patterns: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns.split())
