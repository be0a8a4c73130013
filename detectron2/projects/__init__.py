"""Models that extend the platform and are installed with it.

They are `point_rend`, `deeplab`, `panoptic_deeplab`, `mask2former` and `deformable_detr`. Each is an ordinary
sub-package, imported only when it is asked for. Its configs are in `projects/` of the repository.
"""

__all__: list[str] = []
