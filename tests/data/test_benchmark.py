"""The benchmark runs every stage, and counts what it says."""

import mmap
import os
import re

import pytest
import torch

from detectron2.data._loader import describe_workers, process_memory, system_memory
from detectron2.data.benchmark import DataLoaderBenchmark, iter_benchmark


def test_iter_benchmark():
    taken = []

    def source():
        for i in range(100):
            taken.append(i)
            yield i

    average, each = iter_benchmark(source(), num_iter=4, warmup=3)
    assert len(taken) == 7 and len(each) == 4 and average == pytest.approx(sum(each) / 4) and min(each) >= 0


def test_iter_benchmark_stops_in_time():
    _, each = iter_benchmark(iter(range(100)), num_iter=50, warmup=0, max_time_seconds=0)
    assert len(each) == 1


def test_nothing_to_measure():
    with pytest.raises(ValueError, match="at least 1"):
        iter_benchmark(iter([]), num_iter=0)


@pytest.mark.parametrize("as_list", [True, False])
def test_stages(as_list, caplog):
    caplog.set_level("INFO", "detectron2.data.benchmark")
    data = [{"x": i} for i in range(10)]
    benchmark = DataLoaderBenchmark(
        data if as_list else tuple(data), mapper=lambda d: {"x": d["x"] + 1}, total_batch_size=2, num_workers=1
    )
    assert benchmark.benchmark_dataset(3, warmup=1) >= 0
    assert benchmark.benchmark_mapper(3, warmup=1) >= 0
    assert set(benchmark.benchmark_workers(2, warmup=1)) == {0, 1}
    assert benchmark.benchmark_workers(2, warmup=1, workers=[]) == {}
    assert set(benchmark.benchmark_workers(2, warmup=1, workers=[0, 0])) == {0}
    assert benchmark.benchmark_IPC(2, warmup=1) > 0
    assert benchmark.benchmark_distributed(2, warmup=1) > 0
    messages = [r.getMessage() for r in caplog.records]
    stages = [m.split(":")[0] for m in messages if "seconds per" in m]
    assert stages == ["dataset", "mapper", "0 workers", "1 workers", "0 workers", "handing over", "all ranks"]
    assert all("of it by this process" in m for m in messages if "seconds per" in m) or not os.path.exists("/proc")


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="only Linux tells the memory of a process")
def test_memory_of_workers(caplog):
    caplog.set_level("INFO", "detectron2.data.benchmark")
    data = [{"image": torch.zeros(3, 2, 4)}] * 4
    for grouping in (False, True):
        caplog.clear()
        benchmark = DataLoaderBenchmark(
            data, mapper=dict, total_batch_size=2, num_workers=1, aspect_ratio_grouping=grouping
        )
        benchmark.benchmark_distributed(2, warmup=1)
        line = caplog.records[-1].getMessage()
        each = r"all ranks: 1 workers, each USS (\d+) MiB, PSS (\d+) MiB, RSS (\d+) MiB on average"
        found = re.fullmatch(each + r"; main process RSS \d+ MiB", line)
        assert found is not None, line
        uss, pss, rss = map(int, found.groups())
        assert 0 < uss <= pss <= rss


def test_memory_of_this_process():
    before = process_memory()
    if not before:  # not Linux
        assert describe_workers([os.getpid()]) is None
        return
    held = mmap.mmap(-1, 64 << 20)  # new pages; an array could lie in memory that earlier tests have freed
    held.write(os.urandom(1 << 20) * 64)
    after = process_memory()
    assert after["RSS"] - before["RSS"] > 48 << 20
    if "USS" in after:
        assert after["USS"] - before["USS"] > 48 << 20 and after["USS"] <= after["PSS"] <= after["RSS"]
    held.close()
    available, total = system_memory()
    assert 0 < available < total


def test_memory_of_no_process():
    assert process_memory(-1) == {} and describe_workers([]) is None and describe_workers([-1]) is None
