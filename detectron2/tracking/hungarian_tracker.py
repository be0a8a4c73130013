"""Base of trackers that match all boxes of two frames at once, as an assignment problem."""

import numpy as np

from detectron2.structures import Instances

from ._assignment import linear_sum_assignment
from ._tracks import OverlapTracker

__all__ = ["LARGE_COST_VALUE", "BaseHungarianTracker"]

# Cost of a pair that cannot be the same object.
LARGE_COST_VALUE = 100000


class BaseHungarianTracker(OverlapTracker):
    """Matches the boxes of two frames so that the sum of costs is least (Kuhn, 1955); a subclass gives the costs.

    Arguments are those of `OverlapTracker`.
    """

    def build_cost_matrix(self, instances: Instances, prev_instances: Instances) -> np.ndarray:
        """Costs of all pairs of boxes.

        Args:
            instances: instances of a frame.
            prev_instances: instances of the frame before.

        Returns:
            `(len(instances), len(prev_instances))`; `LARGE_COST_VALUE` or more for a pair that must not be matched.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build_cost_matrix(instances, prev_instances)")

    def _match(self, instances: Instances, prev_instances: Instances) -> list[tuple[int, int]]:
        cost = self.build_cost_matrix(instances, prev_instances)
        possible = cost < LARGE_COST_VALUE
        # Boxes without a possible partner stay out: the problem is then much smaller.
        rows, prev_rows = possible.any(axis=1).nonzero()[0], possible.any(axis=0).nonzero()[0]
        if len(rows) == 0:
            return []
        pairs = zip(*linear_sum_assignment(cost[np.ix_(rows, prev_rows)]), strict=True)
        matches = [(int(rows[i]), int(prev_rows[j])) for i, j in pairs]
        # An assignment is complete, so it pairs what is left over too.
        return [match for match in matches if possible[match]]
