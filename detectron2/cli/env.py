"""`detectron2 env`: versions and devices, for bug reports."""

import argparse
import sys

from detectron2.utils.collect_env import collect_env_info


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    sys.stdout.write(collect_env_info() + "\n")
    return 0
