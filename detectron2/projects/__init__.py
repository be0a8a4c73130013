"""Models that extend the platform and are installed with it: point_rend, deeplab, panoptic_deeplab, deformable_detr.

Each is an ordinary sub-package, imported only when it is asked for. Its configs are in `projects/` of the repository.
"""

__all__: list[str] = []
