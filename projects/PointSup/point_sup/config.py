"""Config keys of point supervision."""

from detectron2.config import CfgNode

__all__ = ["add_point_sup_config"]


def add_point_sup_config(cfg: CfgNode) -> None:
    """Add the keys of point supervision to `cfg`, in place."""
    # Whether the training data has labelled points in place of masks.
    cfg.INPUT.POINT_SUP = False
    # How many points of an object are drawn, anew each time its image is read; 0 uses all of them.
    cfg.INPUT.SAMPLE_POINTS = 0
