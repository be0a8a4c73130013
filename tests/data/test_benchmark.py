"""The benchmark runs every stage, and counts what it says."""

import pytest

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
    assert benchmark.benchmark_IPC(2, warmup=1) > 0
    assert benchmark.benchmark_distributed(2, warmup=1) > 0
    stages = [r.getMessage().split(":")[0] for r in caplog.records]
    assert stages == ["dataset", "mapper", "0 workers", "1 workers", "handing over", "all ranks"]
