#!/bin/sh
# ./datasets/prepare_for_tests.sh [options of prepare_for_tests.py]: from any folder, on the data sets beside it.
cd "$(dirname "$0")/.." && exec python datasets/prepare_for_tests.py "$@"
