"""Feed hostile and damaged files to everything that reads files, and count how it answers.

    python -m tests.fuzz --cases 20000

Prints a table of the kinds of input; exit status 1 if any case was raw, hung, or was wrongly accepted.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.kinds import KINDS
from tests.fuzz.runner import OUTCOMES, run_cases


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=2000, help="in all; shared among the kinds by their weight")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--kind", choices=sorted(KINDS), nargs="+", help="default: all")
    parser.add_argument("--seconds", type=float, default=1200, help="no new kind or block is begun after this time")
    args = parser.parse_args()
    kinds = args.kind or list(KINDS)
    weights = {name: KINDS[name][1] for name in kinds}
    start, total = time.monotonic(), Counter()
    sys.stdout.write(f"{'kind':20s}" + "".join(f"{name:>10s}" for name in ("cases", *OUTCOMES)) + f"{'seconds':>10s}\n")
    everything_bad = []
    for name in kinds:
        begun = time.monotonic()
        count = round(args.cases * weights[name] / sum(weights.values()))
        counts: Counter = Counter()
        with tempfile.TemporaryDirectory() as folder:
            make = KINDS[name][0](Path(folder))
            for first in range(0, count, 200):
                if time.monotonic() - start > args.seconds:
                    break
                block = list(range(args.seed + first, args.seed + min(first + 200, count)))
                found, bad = run_cases(make, Path(folder), block)
                counts += found
                everything_bad += [f"{name} {line}" for line in bad]
        total += counts
        row = (sum(counts.values()), *(counts[outcome] for outcome in OUTCOMES))
        sys.stdout.write(f"{name:20s}" + "".join(f"{n:10d}" for n in row) + f"{time.monotonic() - begun:10.0f}\n")
        sys.stdout.flush()
    row = (sum(total.values()), *(total[outcome] for outcome in OUTCOMES))
    sys.stdout.write(f"{'sum':20s}" + "".join(f"{n:10d}" for n in row) + f"{time.monotonic() - start:10.0f}\n")
    for line in everything_bad:
        sys.stdout.write(line[:500] + "\n")
    return 1 if everything_bad else 0


if __name__ == "__main__":
    sys.exit(main())
