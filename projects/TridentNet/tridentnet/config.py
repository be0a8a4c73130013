"""The config keys of TridentNet."""

from detectron2.config import CfgNode

__all__ = ["add_tridentnet_config"]


def add_tridentnet_config(cfg: CfgNode) -> None:
    """Add the keys `MODEL.TRIDENT.*`."""
    cfg.MODEL.TRIDENT = CfgNode(
        {
            "NUM_BRANCH": 3,
            "BRANCH_DILATIONS": [1, 2, 3],  # of the 3x3 convolutions, one for each branch
            "TRIDENT_STAGE": "res4",  # the stage that is split into branches
            # The branch that inference runs ("TridentNet Fast"); -1 runs all of them and merges what they find.
            "TEST_BRANCH_IDX": 1,
        }
    )
