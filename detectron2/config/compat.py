"""Translating configs between versions of the key schema.

Version 1 renamed the key of the RPN head; version 2 renamed many keys. A file of an old version sets only some keys. So
the current config is *downgraded* (its values get the old names), the file is merged into it, and the result is
*upgraded*.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from fvcore.common.config import CfgNode

__all__ = ["downgrade_config", "guess_version", "upgrade_config"]

_RPN, _RETINANET, _ANCHORS = "MODEL.RPN", "MODEL.RETINANET", "MODEL.ANCHOR_GENERATOR"
_HEADS, _PANOPTIC, _COMBINE = "MODEL.ROI_HEADS", "MODEL.PANOPTIC_FPN", "MODEL.PANOPTIC_FPN.COMBINE"

# version -> {old name: new name} of the step to that version from the one before
_RENAMED: dict[int, dict[str, str]] = {
    1: {"MODEL.RPN_HEAD.NAME": f"{_RPN}.HEAD_NAME"},
    2: {
        "MODEL.WEIGHT": "MODEL.WEIGHTS",
        f"{_PANOPTIC}.SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
        f"{_PANOPTIC}.RPN_LOSS_SCALE": f"{_RPN}.LOSS_WEIGHT",
        f"{_PANOPTIC}.INSTANCE_LOSS_SCALE": f"{_PANOPTIC}.INSTANCE_LOSS_WEIGHT",
        f"{_PANOPTIC}.COMBINE_ON": f"{_COMBINE}.ENABLED",
        f"{_PANOPTIC}.COMBINE_OVERLAP_THRESHOLD": f"{_COMBINE}.OVERLAP_THRESH",
        f"{_PANOPTIC}.COMBINE_STUFF_AREA_LIMIT": f"{_COMBINE}.STUFF_AREA_LIMIT",
        f"{_PANOPTIC}.COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": f"{_COMBINE}.INSTANCES_CONFIDENCE_THRESH",
        f"{_HEADS}.SCORE_THRESH": f"{_HEADS}.SCORE_THRESH_TEST",
        f"{_HEADS}.NMS": f"{_HEADS}.NMS_THRESH_TEST",
        f"{_RETINANET}.INFERENCE_SCORE_THRESHOLD": f"{_RETINANET}.SCORE_THRESH_TEST",
        f"{_RETINANET}.INFERENCE_TOPK_CANDIDATES": f"{_RETINANET}.TOPK_CANDIDATES_TEST",
        f"{_RETINANET}.INFERENCE_NMS_THRESHOLD": f"{_RETINANET}.NMS_THRESH_TEST",
        "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
        "TEST.AUG_ON": "TEST.AUG.ENABLED",
        "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
        "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
        "TEST.AUG_FLIP": "TEST.AUG.FLIP",
    },
}

# Version 1 described the anchors of the RPN and of RetinaNet separately; the meta-architecture decides which apply.
_RPN_ANCHORS, _RETINANET_ANCHORS = (
    {f"{group}.ANCHOR_SIZES": f"{_ANCHORS}.SIZES", f"{group}.ANCHOR_ASPECT_RATIOS": f"{_ANCHORS}.ASPECT_RATIOS"}
    for group in (_RPN, _RETINANET)
)
_ANCHOR_STRIDES = f"{_RETINANET}.ANCHOR_STRIDES"  # version 2 takes them from the feature maps

_LATEST = max(_RENAMED)


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """Return a copy of a config, translated to a newer version, by default the newest.

    A config that is newer than that, or has no version, is a `ValueError`.

    >>> upgrade_config(CfgNode({"VERSION": 1, "MODEL": {"WEIGHT": "a.pkl"}})).MODEL.WEIGHTS
    'a.pkl'
    """
    target = _LATEST if to_version is None else to_version
    start = _version(cfg)
    if not start <= target <= _LATEST:
        raise ValueError(f"Cannot upgrade a config from version {start} to {target} (the newest is {_LATEST}).")
    cfg = cfg.clone()
    for version in range(start + 1, target + 1):
        for old, new in _RENAMED[version].items():
            _move(cfg, old, new)
        if version == 2:
            _upgrade_anchors(cfg)
        cfg["VERSION"] = version
    return cfg


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """Return a copy of a config, translated to an older version.

    An old file can be merged into the result, which has every key that the file may set, with the values of `cfg`. A
    config that is older than that, or has no version, is a `ValueError`.

    >>> downgrade_config(CfgNode({"VERSION": 2, "MODEL": {"WEIGHTS": "a.pkl"}}), to_version=1).MODEL.WEIGHT
    'a.pkl'
    """
    start = _version(cfg)
    if not 0 <= to_version <= start:
        raise ValueError(f"Cannot downgrade a config from version {start} to {to_version}.")
    cfg = cfg.clone()
    for version in range(start, to_version, -1):
        if version == 2:
            _downgrade_anchors(cfg)
        for old, new in _RENAMED[version].items():
            _move(cfg, new, old)
        cfg["VERSION"] = version - 1
    return cfg


def guess_version(cfg: CfgNode, filename: str, known: Mapping[str, Any] | None = None) -> int:
    """Guess the version of a partial config without `VERSION` from its keys; raise a `ValueError` if they are mixed.

    Args:
        cfg: the content of a file.
        filename: its name, for the error.
        known: the config that it will be merged into; names that exist there do not show the version.

    Returns:
        The number of the version; the newest if there are no old names.
    """

    def occurring(names: Iterable[str]) -> list[str]:
        return [n for n in names if _find(cfg, n) is not None and (known is None or _find(known, n) is None)]

    if occurring(_RENAMED[1]):
        return 0
    old_names = occurring([*_RENAMED[2], *_RPN_ANCHORS, *_RETINANET_ANCHORS, _ANCHOR_STRIDES])
    if not old_names:
        return _LATEST
    new_names = [n for n in _RENAMED[2].values() if _find(cfg, n) is not None]
    if new_names:
        raise ValueError(
            f"{filename} has keys of config version 1 ({', '.join(old_names)}) "
            f"and of version 2 ({', '.join(new_names)}). Rename the old ones."
        )
    return 1


def _version(cfg: CfgNode) -> int:
    version = cfg.get("VERSION")
    if not isinstance(version, int):
        raise ValueError(f"Expected a config with a VERSION number, but it is {version!r}.")
    return version


def _find(cfg: Mapping[str, Any], name: str) -> tuple[Any, str] | None:
    """Return the group that holds `name` and the last part of `name`, or None if there is none."""
    *groups, key = name.split(".")
    node: Any = cfg
    for group in groups:
        node = node.get(group) if isinstance(node, Mapping) else None
    return (node, key) if isinstance(node, Mapping) and key in node else None


def _set(cfg: CfgNode, name: str, value: Any) -> None:
    """Set a key; missing groups are created."""
    *groups, key = name.split(".")
    node = cfg
    for group in groups:
        node = node.setdefault(group, type(cfg)())
    node[key] = value


def _move(cfg: CfgNode, source: str, target: str) -> None:
    """Rename a key and remove groups that become empty; a config without the key stays as it is."""
    found = _find(cfg, source)
    if found is None:
        return
    node, key = found
    _set(cfg, target, node.pop(key))
    groups = source.split(".")[:-1]
    while groups:
        parent = _find(cfg, ".".join(groups))
        if parent is None or parent[0][parent[1]]:
            return
        del parent[0][parent[1]]
        groups.pop()


def _upgrade_anchors(cfg: CfgNode) -> None:
    architecture = _find(cfg, "MODEL.META_ARCHITECTURE")
    is_retinanet = architecture is not None and architecture[0][architecture[1]] == "RetinaNet"
    used, unused = (_RETINANET_ANCHORS, _RPN_ANCHORS) if is_retinanet else (_RPN_ANCHORS, _RETINANET_ANCHORS)
    for old, new in used.items():
        _move(cfg, old, new)
    for name in (*unused, _ANCHOR_STRIDES):
        found = _find(cfg, name)
        if found is not None:
            del found[0][found[1]]


def _downgrade_anchors(cfg: CfgNode) -> None:
    for table in (_RPN_ANCHORS, _RETINANET_ANCHORS):
        for old, new in table.items():
            found = _find(cfg, new)
            if found is not None:
                _set(cfg, old, copy.deepcopy(found[0][found[1]]))
    _set(cfg, _ANCHOR_STRIDES, [])
