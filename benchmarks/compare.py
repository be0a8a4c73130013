"""Compare two files that `benchmarks/run.py` wrote: what has become slower or faster by more than chance.

usage:  python benchmarks/compare.py BEFORE.json AFTER.json

Compared are the ratios to the yardsticks, which a faster or a busier machine changes less than seconds. A work is
"slower" or "faster" where they differ by more than the larger spread of the two files, and by more than 3 %. The exit
status is 1 if a work is slower, or fails only in the second file.
"""

import argparse
import json
from pathlib import Path
from typing import Any

LEAST = 0.03  # a difference below this is not told from chance, whatever the spread


def verdict(before: dict[str, Any], after: dict[str, Any]) -> tuple[float | None, str]:
    """Return the ratio of the second to the first, and what that means."""
    if "error" in after:
        return None, "fails in both" if "error" in before else "FAILS"
    if "error" in before:
        return None, "failed before"
    change = after["ratio"] / before["ratio"]
    allowed = 1 + max(before["spread"], after["spread"], LEAST)
    if change > allowed:
        return change, "SLOWER"
    return change, "faster" if change < 1 / allowed else "as before"


def compare(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], bool]:
    """Return the lines of a table, and whether something has become worse."""
    lines = [f"before: {_about(before)}", f"after:  {_about(after)}", ""]
    lines += ["| work | before | after | after : before | peak memory | |", "| --- | --- | --- | --- | --- | --- |"]
    is_worse = False
    for name in [*before["works"], *(n for n in after["works"] if n not in before["works"])]:
        first, second = before["works"].get(name), after["works"].get(name)
        if first is None or second is None:
            lines.append(f"| {name} | {_ratio(first)} | {_ratio(second)} | | | only in one |")
            continue
        change, text = verdict(first, second)
        is_worse |= text in ("SLOWER", "FAILS")
        memory = "" if change is None else f"{second['memory_mib'] / first['memory_mib']:.2f}"
        shown = "" if change is None else f"{change:.2f}"
        lines.append(f"| {name} | {_ratio(first)} | {_ratio(second)} | {shown} | {memory} | {text} |")
    return lines, is_worse


def _about(content: dict[str, Any]) -> str:
    return ", ".join(str(content[key]) for key in ("version", "date", "machine", "torch"))


def _ratio(work: dict[str, Any] | None) -> str:
    return "" if work is None else "failed" if "error" in work else f"{work['ratio']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    args = parser.parse_args()
    contents = []
    for path in (args.before, args.after):
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if not isinstance(content, dict) or "works" not in content:
            parser.error(f"{path} is not a file that benchmarks/run.py wrote with --output FILE.json")
        contents.append(content)
    lines, is_worse = compare(*contents)
    print("\n".join(lines))
    raise SystemExit(int(is_worse))


if __name__ == "__main__":
    main()
