"""How the transforms act on rotated boxes.

A rotated box is `(center_x, center_y, width, height, angle)`: absolute pixels, continuous coordinates, angle in
degrees, counter-clockwise as seen on the screen. All functions take `(N, 5)` floating-point arrays and change them in
place.
"""

import numpy as np


def HFlip_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Mirror rotated boxes left to right: the centre moves and the angle changes its sign."""
    rotated_boxes[:, 0] = transform.width - rotated_boxes[:, 0]
    rotated_boxes[:, 4] = -rotated_boxes[:, 4]
    return rotated_boxes


def VFlip_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Mirror rotated boxes top to bottom: the centre moves and the angle changes its sign."""
    rotated_boxes[:, 1] = transform.height - rotated_boxes[:, 1]
    rotated_boxes[:, 4] = -rotated_boxes[:, 4]
    return rotated_boxes


def Resize_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Scale rotated boxes.

    Unequal factors turn a rectangle into a parallelogram. As in `RotatedBoxes.scale`, the result is the rectangle
    whose sides have the lengths of the scaled sides and whose upright side points where the scaled one does.
    """
    factors = transform.new_w / transform.w, transform.new_h / transform.h
    rotated_boxes[:, :2] *= factors
    return map_sides(rotated_boxes, np.diag(factors))


def extract_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Move and scale rotated boxes as `ExtentTransform` does; for unequal factors see `Resize_rotated_box`."""
    x0, y0, x1, y1 = transform.src_rect
    h, w = transform.output_size
    rotated_boxes[:, :2] = transform.apply_coords(rotated_boxes[:, :2])
    return map_sides(rotated_boxes, np.diag((w / (x1 - x0), h / (y1 - y0))))


def map_sides(rotated_boxes: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Send the sides of rotated boxes through a linear map; their centres stay.

    The image of a rectangle is a parallelogram. The result is the rectangle whose sides have the lengths of its sides
    and whose upright side points where its upright side does.

    Args:
        rotated_boxes: changed in place.
        linear: `(2, 2)`, maps differences `(x, y)` of points.

    Returns:
        The same array.
    """
    theta = np.deg2rad(rotated_boxes[:, 4])
    cos, sin = np.cos(theta), np.sin(theta)
    across, upright = linear @ np.stack([cos, -sin]), linear @ np.stack([sin, cos])  # y points down
    rotated_boxes[:, 2] *= np.hypot(*across)
    rotated_boxes[:, 3] *= np.hypot(*upright)
    rotated_boxes[:, 4] = np.rad2deg(np.arctan2(*upright))
    return rotated_boxes


def shift_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Move the centres of rotated boxes with a transform that shifts or rotates; used by crop and pad."""
    rotated_boxes[:, :2] = transform.apply_coords(rotated_boxes[:, :2])
    return rotated_boxes


def rotate_rotated_box(transform, rotated_boxes: np.ndarray) -> np.ndarray:
    """Rotate boxes: the centre moves and the angle of the rotation adds up."""
    rotated_boxes[:, :2] = transform.apply_coords(rotated_boxes[:, :2])
    rotated_boxes[:, 4] += transform.angle
    return rotated_boxes


def keep_rotated_box(transform, x: np.ndarray) -> np.ndarray:
    """Leave rotated boxes alone; used by transforms of colours."""
    return x
