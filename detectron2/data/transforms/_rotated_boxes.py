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
    scale_x, scale_y = transform.new_w / transform.w, transform.new_h / transform.h
    theta = np.deg2rad(rotated_boxes[:, 4])
    cos, sin = np.cos(theta), np.sin(theta)
    rotated_boxes[:, 0] *= scale_x
    rotated_boxes[:, 1] *= scale_y
    rotated_boxes[:, 2] *= np.hypot(scale_x * cos, scale_y * sin)
    rotated_boxes[:, 3] *= np.hypot(scale_x * sin, scale_y * cos)
    rotated_boxes[:, 4] = np.rad2deg(np.arctan2(scale_x * sin, scale_y * cos))
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
