"""`python -m detectron2`: the command line, for when its script is not on the path."""

import sys

from detectron2.cli import main

if __name__ == "__main__":
    sys.exit(main())
