"""Print, flatten and check the nested result dictionaries that evaluators return."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of each task as three comma-separated lines, easy to find (`copypaste`) and to paste.

    Args:
        results: `{task: {metric: number}}`; metrics with a `-` in their name (one class each) are left out.

    Raises:
        TypeError: `results` is not a dictionary with at least the tasks as keys.

    Example:
        >>> print_csv_format({"bbox": {"AP": 40.0, "AP50": 60.0}})  # writes to the log
    """
    if not isinstance(results, Mapping):
        raise TypeError(f"results must be a dictionary of {{task: metrics}}, got {type(results).__name__}: {results!r}")
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info(f"copypaste: {task}={metrics}")
            continue
        chosen = {str(name): value for name, value in metrics.items() if "-" not in str(name)}
        logger.info(f"copypaste: Task: {task}")
        logger.info("copypaste: " + ",".join(chosen))
        logger.info("copypaste: " + ",".join(_formatted(value) for value in chosen.values()))


def _formatted(value: Any) -> str:
    try:
        return f"{float(value):.4f}"
    except (TypeError, ValueError):  # evaluators may report what they like
        return str(value)


def _shortfall(results: Mapping[str, Any], task: str, metric: str, expected: float, tolerance: float) -> str | None:
    """What is wrong with one metric, or None."""
    metrics = results.get(task)
    if not isinstance(metrics, Mapping) or metric not in metrics:
        there = metrics if isinstance(metrics, Mapping) else results
        return f"{task}/{metric}: expected {expected}, but there is no such result, only {list(there)}"
    if not math.isfinite(metrics[metric]) or abs(metrics[metric] - expected) > tolerance:
        return f"{task}/{metric}: {metrics[metric]}, expected {expected} within {tolerance}"
    return None


def verify_results(cfg: Any, results: Mapping[str, Any]) -> bool:
    """Compare results with `cfg.TEST.EXPECTED_RESULTS`, and end the process with status 1 when they differ.

    Args:
        cfg: a config; its `TEST.EXPECTED_RESULTS` lists `[task, metric, expected value, tolerance]` entries.
        results: `{task: {metric: number}}`.

    Returns:
        True; also when nothing is expected.

    Example:
        >>> cfg = get_cfg()
        >>> cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 40.0, 0.5]]
        >>> verify_results(cfg, {"bbox": {"AP": 40.2}})
        True
    """
    expected = cfg.TEST.EXPECTED_RESULTS
    if not expected:
        return True
    wrong = [problem for entry in expected if (problem := _shortfall(results, *entry))]
    if wrong:
        logger.error("Result verification failed:\n  " + "\n  ".join(wrong))
        logger.error("Actual results:\n" + pprint.pformat(dict(results)))
        sys.exit(1)
    logger.info("Results verification passed.")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"bbox": {"AP": 40.0}}` into `{"bbox/AP": 40.0}`, at any depth.

    Args:
        results: nested dictionaries.

    Returns:
        One dictionary, with keys joined by slashes.

    Example:
        >>> flatten_results_dict({"bbox": {"AP": 40.0, "AP50": 60.0}})
        {'bbox/AP': 40.0, 'bbox/AP50': 60.0}
    """
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{name}": inner for name, inner in flatten_results_dict(value).items()})
        else:
            flat[str(key)] = value
    return flat
