"""Rotated boxes, and the overlap between them.

Letters: `N`, `M` boxes.
"""

from __future__ import annotations

import torch

from detectron2.layers.rotated_boxes import pairwise_iou_rotated

from .boxes import Boxes

__all__ = ["RotatedBoxes", "pairwise_iou"]


class RotatedBoxes(Boxes):
    """A list of rotated boxes, stored as one float32 tensor: rows of `(x_center, y_center, width, height, angle)`.

    All but the angle is in absolute pixels, continuous coordinates. The angle is in degrees: take the upright box of
    this centre, width and height, and turn it about its centre, counter-clockwise as seen on the screen for positive
    angles. With y pointing down, a point of the upright box at `(dx, dy)` from the centre goes to
    `(cos a * dx + sin a * dy, cos a * dy - sin a * dx)`. So the side along `width` of `(5, 3, 4, 2, 90)` runs
    upwards, from `(5, 5)` to `(5, 1)`.

    Angles that differ by 360 mean the same box. Those that differ by 180 cover the same region but point elsewhere:
    their overlap is complete, their pooled features are upside down to each other. Any angle may be stored;
    `normalize_angles` brings it into `[-180, 180)`.

    Args:
        tensor: `(N, 5)`; or what `torch.as_tensor` turns into that.

    Attributes:
        tensor: the boxes, `(N, 5)`.

    Raises:
        ValueError: the shape is not `(N, 5)`.

    Example:
        >>> from detectron2.structures import RotatedBoxes
        >>> boxes = RotatedBoxes([[50, 50, 40, 20, 30], [10, 10, 8, 4, 450]])
        >>> boxes.area()
        tensor([800.,  32.])
        >>> boxes.normalize_angles()
        >>> boxes[1]
        RotatedBoxes(tensor([[10., 10.,  8.,  4., 90.]]))
        >>> boxes.inside_box((100, 100))
        tensor([True, True])
    """

    _columns = ("x_center", "y_center", "width", "height", "angle in degrees")

    def area(self) -> torch.Tensor:
        """Area of each box, `(N,)`, in square pixels."""
        return self.tensor[:, 2] * self.tensor[:, 3]

    def normalize_angles(self) -> None:
        """Bring the angles into `[-180, 180)`, in place; the tensor they were made of stays as it is."""
        self.tensor = torch.cat((self.tensor[:, :4], _principal(self.tensor[:, 4:])), dim=1)

    def clip(self, box_size: tuple[int, int], clip_angle_threshold: float = 1.0) -> None:
        """Limit nearly upright boxes to the image, and normalise all angles.

        Other boxes stay as they are: cut off at the border they would not be rectangles, and shrunk to fit they would
        lose what they are to cover. Pooling copes with what lies outside.

        This object changes; the tensor it was made of does not.

        Args:
            box_size: `(height, width)` of the image.
            clip_angle_threshold: in degrees; boxes with a normalised angle of at most this, either way, are clipped.
                They are treated as upright and keep their angle.
        """
        height, width = box_size
        center_xy, size_wh, angle = self.tensor.split((2, 2, 1), dim=1)
        angle = _principal(angle)
        half_wh = size_wh / 2
        low, high = center_xy - half_wh, center_xy + half_wh
        low = torch.stack((low[:, 0].clamp(0, width), low[:, 1].clamp(0, height)), dim=1)
        high = torch.stack((high[:, 0].clamp(0, width), high[:, 1].clamp(0, height)), dim=1)
        upright = angle.abs() <= clip_angle_threshold
        # A box inside the image may not grow by the rounding of its corners.
        clipped = torch.cat(((low + high) / 2, torch.minimum(high - low, size_wh)), dim=1)
        self.tensor = torch.cat((torch.where(upright, clipped, self.tensor[:, :4]), angle), dim=1)

    def nonempty(self, threshold: float = 0.0) -> torch.Tensor:
        """Which boxes are wider and higher than `threshold` pixels: bool `(N,)`."""
        return (self.tensor[:, 2:4] > threshold).all(dim=1)

    def inside_box(self, box_size: tuple[int, int], boundary_threshold: int = 0) -> torch.Tensor:
        """Which boxes lie within the image with all of their corners; the arguments are those of `Boxes.inside_box`."""
        height, width = box_size
        x, y, box_width, box_height, angle = self.tensor.unbind(1)
        theta = torch.deg2rad(angle)
        cos, sin = theta.cos().abs(), theta.sin().abs()
        # How far the corners are from the centre, along x and y.
        reach_x = (box_width * cos + box_height * sin) / 2
        reach_y = (box_width * sin + box_height * cos) / 2
        margin = boundary_threshold
        inside_x = (x - reach_x >= -margin) & (x + reach_x < width + margin)
        return inside_x & (y - reach_y >= -margin) & (y + reach_y < height + margin)

    def get_centers(self) -> torch.Tensor:
        """Centre `(x, y)` of each box, `(N, 2)`."""
        return self.tensor[:, :2]

    def scale(self, scale_x: float, scale_y: float) -> None:
        """Multiply x by `scale_x` and y by `scale_y`; this object changes, the tensor it was made of does not.

        Unequal factors turn a rectangle into a parallelogram, unless it is upright. The result is the rectangle whose
        sides are as long as those of the parallelogram, and whose `height` side points where that one's does.
        """
        x, y, width, height, angle = self.tensor.unbind(1)
        theta = torch.deg2rad(angle)
        cos, sin = theta.cos(), theta.sin()
        # The width vector is (cos, -sin), the height vector (sin, cos).
        self.tensor = torch.stack(
            (
                x * scale_x,
                y * scale_y,
                width * torch.hypot(scale_x * cos, scale_y * sin),
                height * torch.hypot(scale_x * sin, scale_y * cos),
                torch.rad2deg(torch.atan2(scale_x * sin, scale_y * cos)),
            ),
            dim=1,
        )


def _principal(angle: torch.Tensor) -> torch.Tensor:
    """Angles in degrees, brought into `[-180, 180)`."""
    return torch.remainder(angle + 180.0, 360.0) - 180.0


def pairwise_iou(boxes1: RotatedBoxes, boxes2: RotatedBoxes) -> torch.Tensor:
    """Intersection over union of every pair, `(N, M)`; exported as `detectron2.structures.pairwise_iou_rotated`.

    See `detectron2.layers.rotated_boxes.pairwise_iou_rotated`.

    Args:
        boxes1: `N` boxes.
        boxes2: `M` boxes.

    Returns:
        float32 `(N, M)`; 0 where boxes do not overlap.

    Example:
        >>> from detectron2.structures import RotatedBoxes, pairwise_iou_rotated
        >>> boxes = RotatedBoxes([[5, 5, 4, 2, 0]])
        >>> pairwise_iou_rotated(boxes, RotatedBoxes([[5, 5, 4, 2, 180], [5, 5, 4, 2, 90]]))
        tensor([[1.0000, 0.3333]])
    """
    return pairwise_iou_rotated(boxes1.tensor, boxes2.tensor)
