"""`Batcher`: every item once, in batches, and a bad one alone fails."""

import itertools
import threading
from concurrent.futures import CancelledError

import pytest

from detectron2.serving import Batcher


class Recorder:
    """Doubles numbers, and notes the batches; negative ones fail, as do `None`s alone. It waits while it is held."""

    def __init__(self):
        self.batches = []
        self.is_free = threading.Event()
        self.has_begun = threading.Event()
        self.is_free.set()

    def __call__(self, numbers):
        self.has_begun.set()
        assert self.is_free.wait(60)
        self.batches.append(list(numbers))
        if any(number < 0 for number in numbers):
            raise ValueError(f"{min(numbers)} is negative")
        return [2 * number for number in numbers]

    def hold(self):
        self.is_free.clear()
        self.has_begun.clear()


@pytest.fixture
def recorder():
    return Recorder()


def held(recorder, batcher):
    """Submit a first item, and wait until its batch is run, which others then wait for."""
    recorder.hold()
    first = batcher.submit(0)
    assert recorder.has_begun.wait(60)
    return first


def test_nothing(recorder):
    batcher = Batcher(recorder, batch_size=3)
    batcher.close()
    assert recorder.batches == [] and not batcher.is_open


def test_one(recorder):
    batcher = Batcher(recorder, batch_size=3)
    assert batcher.submit(4).result(60) == 8 and batcher.is_open
    batcher.close()
    assert recorder.batches == [[4]]


def test_those_that_wait_share_batches_in_order(recorder):
    batcher = Batcher(recorder, batch_size=3)
    futures = [held(recorder, batcher)] + [batcher.submit(number) for number in range(1, 6)]
    recorder.is_free.set()
    batcher.close()
    assert [future.result(60) for future in futures] == [0, 2, 4, 6, 8, 10]
    assert recorder.batches == [[0], [1, 2, 3], [4, 5]]


def test_the_first_waits_for_others(recorder):
    batcher = Batcher(recorder, batch_size=2, window=600)
    futures = [batcher.submit(number) for number in range(4)]
    assert [future.result(60) for future in futures] == [0, 2, 4, 6]
    last = batcher.submit(5)
    batcher.close()  # which does not wait for the window
    assert last.result(0) == 10 and recorder.batches == [[0, 1], [2, 3], [5]]


def test_a_bad_item_fails_alone(recorder):
    batcher = Batcher(recorder, batch_size=3)
    futures = [held(recorder, batcher)] + [batcher.submit(number) for number in (1, -2, 3)]
    recorder.is_free.set()
    with pytest.raises(ValueError, match="-2 is negative"):
        futures[2].result(60)
    assert [futures[i].result(60) for i in (0, 1, 3)] == [0, 2, 6]
    batcher.close()
    assert recorder.batches == [[0], [1, -2, 3], [1], [-2], [3]]


def test_cancelled_items_are_left_out(recorder):
    batcher = Batcher(recorder, batch_size=3)
    futures = [held(recorder, batcher)] + [batcher.submit(number) for number in (1, 2)]
    assert futures[1].cancel()
    recorder.is_free.set()
    assert futures[2].result(60) == 4
    with pytest.raises(CancelledError):
        futures[1].result(60)
    batcher.close()
    assert recorder.batches == [[0], [2]]


def test_all_cancelled(recorder):
    batcher = Batcher(recorder, batch_size=3)
    held(recorder, batcher)
    assert batcher.submit(1).cancel()
    recorder.is_free.set()
    batcher.close()
    assert recorder.batches == [[0]]


def test_the_wrong_number_of_outputs():
    batcher = Batcher(lambda numbers: [], batch_size=3)
    with pytest.raises(RuntimeError, match="returned 0 outputs for 1 items"):
        batcher.submit(1).result(60)
    batcher.close()


def test_many_threads(recorder):
    batcher = Batcher(recorder, batch_size=8, window=0.001)
    found = {}

    def ask(start):
        for number in range(start, start + 25):
            found[number] = batcher.submit(number).result(60)

    threads = [threading.Thread(target=ask, args=(25 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert found == {number: 2 * number for number in range(200)}
    assert sorted(itertools.chain(*recorder.batches)) == list(range(200)) and max(map(len, recorder.batches)) <= 8


def test_closed(recorder):
    batcher = Batcher(recorder, batch_size=3)
    batcher.close()
    batcher.close()
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(1)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 1, "window": -1}])
def test_impossible_options(recorder, options):
    with pytest.raises(ValueError, match=list(options)[-1]):
        Batcher(recorder, **options)
