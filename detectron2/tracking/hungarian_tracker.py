"""Base of trackers that match all boxes of two frames at once, as an assignment problem."""

from typing import Any

import numpy as np

from detectron2.structures import Instances

from .base_tracker import OverlapTracker

__all__ = ["LARGE_COST_VALUE", "BaseHungarianTracker", "linear_sum_assignment"]

# Cost of a pair that cannot be the same object.
LARGE_COST_VALUE = 100000


class BaseHungarianTracker(OverlapTracker):
    """Matches the boxes of two frames so that the sum of costs is least (Kuhn, 1955); a subclass gives the costs.

    Arguments are those of `OverlapTracker`.

    Example:
        >>> from detectron2.structures import Boxes, Instances
        >>> from detectron2.tracking import BaseHungarianTracker
        >>> class NearestCenters(BaseHungarianTracker):
        ...     def build_cost_matrix(self, instances, prev_instances):
        ...         centers, before = instances.pred_boxes.get_centers(), prev_instances.pred_boxes.get_centers()
        ...         return torch.cdist(centers, before).numpy()
        ...
        >>> tracker = NearestCenters(video_height=480, video_width=640)
        >>> tracker.update(Instances((480, 640), pred_boxes=Boxes([[0, 0, 10, 10], [50, 50, 60, 60]]))).ID
        [0, 1]
        >>> tracker.update(Instances((480, 640), pred_boxes=Boxes([[65, 50, 75, 60]]))).ID
        [1]
    """

    def build_cost_matrix(self, instances: Instances, prev_instances: Instances) -> np.ndarray:
        """Costs `(len(instances), len(prev_instances))` of all pairs of boxes of a frame and the one before.

        A pair that must not be matched costs `LARGE_COST_VALUE` or more.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build_cost_matrix(instances, prev_instances)")

    def _track(self, instances: Instances, prev_instances: Instances) -> Instances:
        rows, prev_rows = _least_cost_pairs(self.build_cost_matrix(instances, prev_instances))
        instances = self._process_matched_idx(instances, rows, prev_rows)
        instances = self._process_unmatched_idx(instances, rows)
        return self._process_unmatched_prev_idx(instances, prev_rows)

    # What follows is called in this order and may be overridden.

    def _process_matched_idx(
        self, instances: Instances, matched_idx: np.ndarray, matched_prev_idx: np.ndarray
    ) -> Instances:
        """Carry the numbers of rows of the frame before on to the rows that they are matched with."""
        previous: Any = self._prev_instances
        for row, prev_row in zip(matched_idx.tolist(), matched_prev_idx.tolist(), strict=True):
            self._continue_track(instances, row, previous.ID[prev_row], previous.ID_period[prev_row])
        return instances

    def _process_unmatched_idx(self, instances: Instances, matched_idx: np.ndarray) -> Instances:
        """Give new numbers to the other rows."""
        return self._begin_tracks(instances, matched_idx.tolist())

    def _process_unmatched_prev_idx(self, instances: Instances, matched_prev_idx: np.ndarray) -> Instances:
        """Append the other rows of the frame before that are worth waiting for."""
        previous: Any = self._prev_instances
        return self._with_lost(instances, set(range(len(previous))).difference(matched_prev_idx.tolist()))


def _least_cost_pairs(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and columns that are matched: of the pairs that cost less than `LARGE_COST_VALUE`."""
    possible = cost < LARGE_COST_VALUE
    # Boxes without a possible partner stay out: the problem is then much smaller.
    rows, columns = possible.any(axis=1).nonzero()[0], possible.any(axis=0).nonzero()[0]
    if len(rows) == 0:
        return rows, columns
    i, j = linear_sum_assignment(cost[np.ix_(rows, columns)])
    # An assignment is complete, so it pairs what is left over too.
    kept = possible[rows[i], columns[j]]
    return rows[i][kept], columns[j][kept]


def linear_sum_assignment(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Assign each row another column, or each column another row where there are fewer columns, at the least cost.

    `R` rows, `C` columns. Solved by shortest augmenting paths with dual variables, O(R² C) in the worst case (Jonker
    and Volgenant, "A Shortest Augmenting Path Algorithm for Dense and Sparse Linear Assignment Problems", Computing
    38, 1987; Crouse, "On Implementing 2D Rectangular Assignment Algorithms", IEEE TAES 52(4), 2016). SciPy would be a
    large dependency for one function.

    Args:
        cost: `(R, C)`, finite.

    Returns:
        Rows, ascending, and the column of each, both int64 `(min(R, C),)`.

    Raises:
        ValueError: the cost is not a matrix, or not finite.

    Example:
        >>> from detectron2.tracking.hungarian_tracker import linear_sum_assignment
        >>> rows, columns = linear_sum_assignment(np.array([[4, 1, 4], [2, 0, 5]]))
        >>> rows.tolist(), columns.tolist()
        ([0, 1], [1, 0])
    """
    cost = np.asarray(cost, dtype=np.float64)
    if cost.ndim != 2 or not np.isfinite(cost).all():
        raise ValueError(f"costs must be a finite matrix, got shape {cost.shape}; forbid a pair by a large cost")
    if cost.shape[0] > cost.shape[1]:
        columns, rows = linear_sum_assignment(cost.T)
        order = rows.argsort()
        return rows[order], columns[order]
    row_of_column = np.full(cost.shape[1], -1, dtype=np.int64)
    column_of_row = np.full(cost.shape[0], -1, dtype=np.int64)
    if cost.size == 0:
        return column_of_row.copy(), column_of_row
    row_price, column_price = cost.min(axis=1), np.zeros(cost.shape[1])
    # Between two frames nearly every box has a best partner of its own, and no path is needed.
    cheapest, first_row = np.unique(cost.argmin(axis=1), return_index=True)
    row_of_column[cheapest], column_of_row[first_row] = first_row, cheapest
    for row in np.flatnonzero(column_of_row < 0).tolist():
        _augment(cost, row, row_of_column, column_of_row, row_price, column_price)
    return np.arange(cost.shape[0], dtype=np.int64), column_of_row


def _augment(
    cost: np.ndarray,
    start: int,
    row_of_column: np.ndarray,
    column_of_row: np.ndarray,
    row_price: np.ndarray,
    column_price: np.ndarray,
) -> None:
    """Assign one more row along the shortest path to a free column; all arrays but the cost are changed."""
    # Invariant: `cost - row_price[:, None] - column_price` is nowhere negative, and 0 on assigned pairs, so that
    # Dijkstra's algorithm finds the path, which alternates between free and assigned pairs.
    distance = np.full(cost.shape[1], np.inf)
    came_from = np.full(cost.shape[1], start, dtype=np.int64)  # the row before each column on the path
    is_done = np.zeros(cost.shape[1], dtype=bool)
    passed: list[tuple[int, float]] = [(start, 0.0)]  # rows on the tree, and their distance
    row, reached = start, 0.0
    while True:
        through = reached + (cost[row] - row_price[row] - column_price)
        closer = (through < distance) & ~is_done
        distance[closer], came_from[closer] = through[closer], row
        column = int(np.where(is_done, np.inf, distance).argmin())
        is_done[column], reached = True, float(distance[column])
        row = int(row_of_column[column])
        if row < 0:
            break
        passed.append((row, reached))
    for of_row, at in passed:
        row_price[of_row] += reached - at
    column_price[is_done] -= reached - distance[is_done]
    while True:  # back along the path: each row takes the column that it reached
        row = int(came_from[column])
        row_of_column[column] = row
        column, column_of_row[row] = int(column_of_row[row]), column
        if row == start:
            return
