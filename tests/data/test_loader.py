"""Streams of training samples: the same for a seed, continued where they were; and what happens when workers die."""

import functools
import gc
import itertools
import logging
import os
import pickle
import random
import re
import select
import signal
import threading
import time
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.utils.data as torchdata

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, _loader, build, build_detection_test_loader, build_detection_train_loader
from detectron2.data._loader import explain_worker_error
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
    WeightedTrainingSampler,
)
from detectron2.utils import comm

RECORDS = [{"id": i, "width": 2 + i * 7 % 3, "height": 3} for i in range(11)]

SAMPLERS = {
    "TrainingSampler": lambda seed: TrainingSampler(11, seed=seed),
    "RandomSubsetTrainingSampler": lambda seed: RandomSubsetTrainingSampler(
        11, 0.7, seed_shuffle=seed, seed_subset=seed
    ),
    "RepeatFactorTrainingSampler": lambda seed: RepeatFactorTrainingSampler(torch.arange(11) / 5, seed=seed),
    "WeightedTrainingSampler": lambda seed: WeightedTrainingSampler([3, 8], [1, 1], seed=seed),
    "own": lambda seed: list(np.random.default_rng(seed or 0).permutation(11).tolist()) * 20,
}


def augment(record):
    """Add random numbers from all generators, as augmentations draw them."""
    return {**record, "drawn": (random.random(), float(np.random.rand()), float(torch.rand(())))}


def train_loader(sampler="TrainingSampler", seed=None, batch=2, records=RECORDS, mapper=augment, **kwargs):
    return build_detection_train_loader(
        records,
        mapper=mapper,
        sampler=sampler if not isinstance(sampler, str) else SAMPLERS[sampler](seed),
        total_batch_size=batch,
        **kwargs,
    )


def take(loader, n):
    """Batches as text that can be compared."""
    return [[(d["id"], d["drawn"]) for d in batch] for batch in itertools.islice(iter(loader), n)]


@pytest.fixture
def on_rank(monkeypatch):
    def be(rank, world_size):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)

    return be


class TestReproducible:
    @pytest.mark.parametrize("grouping", [False, True])
    def test_workers_change_nothing(self, grouping):
        streams = [take(train_loader(seed=5, aspect_ratio_grouping=grouping, num_workers=n), 12) for n in (0, 1, 2)]
        assert streams[0] == streams[1] == streams[2]
        assert len({drawn for batch in streams[0] for _, drawn in batch}) == 24  # never the same numbers again

    def test_seeds_differ(self):
        first, second = (take(train_loader(seed=seed), 12) for seed in (5, 6))
        assert first != second and take(train_loader(seed=5), 12) == first
        # The seed of the augmentations may be another one than that of the order.
        loader = build_detection_train_loader(
            RECORDS, mapper=augment, sampler=TrainingSampler(11, seed=5), total_batch_size=2, seed=7
        )
        others = take(loader, 12)
        assert [[i for i, _ in b] for b in others] == [[i for i, _ in b] for b in first] and others != first

    def test_global_seed_decides(self):
        def run(seed):
            np.random.seed(seed)
            return take(train_loader(), 6)

        assert run(1) == run(1) != run(2)


class TestResume:
    @pytest.mark.parametrize("grouping", [False, True])
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_continues_the_stream(self, sampler, grouping):
        loader = train_loader(sampler, aspect_ratio_grouping=grouping)
        batches = iter(loader)
        states = [loader.state_dict()]
        stream = []
        for batch in itertools.islice(batches, 30):
            stream.append([(d["id"], d["drawn"]) for d in batch])
            states.append(loader.state_dict())
        assert [s["num_batches"] for s in states] == list(range(31))
        for k in (0, 1, 6, 13, 29):
            other = train_loader(sampler, aspect_ratio_grouping=grouping)  # with another seed, if it has one
            other.load_state_dict(states[k])
            assert other.state_dict() == states[k]
            assert take(other, 30 - k) == stream[k:], k

    @pytest.mark.parametrize("grouping", [False, True])
    def test_with_workers(self, grouping):
        stream = take(train_loader(seed=5, aspect_ratio_grouping=grouping), 14)
        other = train_loader(seed=5, aspect_ratio_grouping=grouping, num_workers=2)
        other.set_position(9)
        assert take(other, 5) == stream[9:]

    def test_loads_nothing_that_it_passes_over(self):
        loaded = []
        loader = train_loader(seed=5, mapper=lambda d: loaded.append(d["id"]) or augment(d), aspect_ratio_grouping=True)
        loader.set_position(1000)
        take(loader, 1)
        assert len(loaded) <= 2 + 2 * 3

    @pytest.mark.parametrize("grouping", [False, True])
    def test_persistent_workers(self, grouping):
        loader = train_loader(seed=5, aspect_ratio_grouping=grouping, num_workers=1, persistent_workers=True)
        stream = take(loader, 8)
        loader.set_position(6)
        assert take(loader, 2) == stream[6:]
        pids = loader.worker_pids
        loader.set_position(0)
        assert take(loader, 3) == stream[:3] and loader.worker_pids != pids

    @pytest.mark.parametrize("grouping", [False, True])
    def test_state_of_one_rank_is_that_of_all(self, on_rank, grouping):
        streams, states = [], []
        for rank in (0, 1):
            on_rank(rank, 2)
            loader = train_loader(seed=5, batch=4, aspect_ratio_grouping=grouping)
            batches = iter(loader)
            for _ in range(5):
                next(batches)
            states.append(loader.state_dict())
            streams.append(take(train_loader(seed=5, batch=4, aspect_ratio_grouping=grouping), 9))
        assert states[0] == states[1] and streams[0] != streams[1]
        on_rank(1, 2)
        loader = train_loader(seed=6, batch=4, aspect_ratio_grouping=grouping)
        loader.load_state_dict(states[0])
        assert take(loader, 4) == streams[1][5:]

    def test_on_another_number_of_ranks(self, on_rank):
        on_rank(0, 1)
        loader = train_loader(seed=5, batch=4, aspect_ratio_grouping=False)
        stream = take(loader, 6)
        loader.set_position(3)
        state = loader.state_dict()
        shares = []
        for rank in (0, 1):
            on_rank(rank, 2)
            other = train_loader(seed=6, batch=4, aspect_ratio_grouping=False)
            other.load_state_dict(state)
            shares.append(take(other, 3))
        together = [sorted(a + b) for a, b in zip(*shares, strict=True)]
        assert together == [sorted(batch) for batch in stream[3:]]

    def test_another_batch_size(self):
        state = train_loader(seed=5, batch=2).state_dict() | {"num_batches": 6}
        stream = take(train_loader(seed=5, batch=4), 4)
        other = train_loader(batch=4)
        other.load_state_dict(state)
        assert other.num_batches == 3 and take(other, 1) == stream[3:]

    def test_finite(self):
        loader = build_detection_train_loader(
            RECORDS, mapper=augment, sampler=range(6), total_batch_size=2, aspect_ratio_grouping=False
        )
        loader.set_position(2)
        assert [[d["id"] for d in b] for b in loader] == [[4, 5]]
        assert [[d["id"] for d in b] for b in loader] == [[0, 1], [2, 3], [4, 5]]
        loader.set_position(5)
        assert [[d["id"] for d in b] for b in loader] == [[4, 5]]  # the last batch of the second time through

    def test_negative(self):
        with pytest.raises(ValueError, match="-1"):
            train_loader().set_position(-1)

    def test_what_changed_is_said(self, caplog):
        state = train_loader("RepeatFactorTrainingSampler", seed=5).state_dict()
        train_loader("TrainingSampler").load_state_dict(state)
        assert "sampler is another one" in caplog.text
        train_loader("RepeatFactorTrainingSampler").load_state_dict({**state, "size": 10})
        assert "has 11 elements now, and had 10" in caplog.text

    def test_unknown_shapes(self, caplog):
        """Without sizes in the data set itself, the position is that of a stream in which no sample waits."""
        records = [{"id": i} for i in range(11)]
        loader = build_detection_train_loader(
            records,
            mapper=lambda d: augment({**d, "width": 2, "height": 1}),
            sampler=TrainingSampler(11, seed=5),
            total_batch_size=2,
        )
        stream = take(loader, 5)
        loader.set_position(3)
        assert take(loader, 2) == stream[3:] and "approximate" in caplog.text

    def test_iterable(self, caplog):
        class Stream(torchdata.IterableDataset):
            def __iter__(self):
                return iter(RECORDS)

        loader = build_detection_train_loader(Stream(), mapper=augment, total_batch_size=2, aspect_ratio_grouping=False)
        assert [i for b in take(loader, 2) for i, _ in b] == [0, 1, 2, 3]
        assert loader.state_dict() == {"num_batches": 2}
        loader.load_state_dict({"num_batches": 2})
        assert [i for b in take(loader, 1) for i, _ in b] == [0, 1] and "cannot be positioned" in caplog.text

    def test_is_sent_to_workers_that_are_not_forked(self):
        stream = take(train_loader(seed=5), 4)
        loader = train_loader(seed=5, aspect_ratio_grouping=False)
        loader.set_position(2)
        iter(loader)
        in_worker = pickle.loads(ForkingPickler.dumps(loader.dataset))
        samples = [(d["id"], d["drawn"]) for d in itertools.islice(in_worker, 4)]
        flat = take(train_loader(seed=5, aspect_ratio_grouping=False), 4)
        assert samples == flat[2] + flat[3] and stream != flat


class Endless(torchdata.Sampler):
    """A sampler as other projects have it: without an end, though with a length."""

    def __len__(self):
        return 11

    def __iter__(self):
        return itertools.cycle(np.random.default_rng(3).permutation(11).tolist())


class TestAnotherIterator:
    """A loop over epochs, each with an iterator of its own, sees the stream that one iterator gives."""

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("grouping", [False, True])
    @pytest.mark.parametrize("sampler", [*SAMPLERS, "endless"])
    def test_goes_on(self, sampler, grouping, workers, monkeypatch):
        monkeypatch.setitem(SAMPLERS, "endless", lambda seed: Endless())

        def make(workers=0):
            torch.manual_seed(5)  # a sampler of one's own tells no seed
            return train_loader(sampler, seed=5, aspect_ratio_grouping=grouping, num_workers=workers)

        stream = take(make(), 18)
        loader = make(workers)
        assert [batch for n in (4, 0, 1, 6) for batch in take(loader, n)] == stream[:11]
        resumed = make()
        resumed.load_state_dict(loader.state_dict())
        assert take(resumed, 3) + take(resumed, 4) == take(loader, 7) == stream[11:]

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("grouping", [False, True])
    @pytest.mark.parametrize("size", [12, 13])
    def test_epochs_of_a_sampler_that_ends(self, size, grouping, workers):
        """Whether a loop goes to the end, stops before it, or stops when the last batch is there."""

        def loader(workers=0):
            sampler = torchdata.RandomSampler(range(size))
            records = [{"id": i, "width": 2 + i % 3, "height": 3} for i in range(size)]
            torch.manual_seed(5)
            return train_loader(
                sampler=sampler, records=records, seed=5, aspect_ratio_grouping=grouping, num_workers=workers
            )

        whole_epochs = loader(workers)
        epochs = [list(whole_epochs) for _ in range(2)]
        drawn = [d["drawn"] for epoch in epochs for batch in epoch for d in batch]
        assert len(set(drawn)) == len(drawn)
        assert all(len({d["id"] for b in epoch for d in b}) == 2 * len(epoch) for epoch in epochs)
        assert [[d["id"] for d in b] for b in epochs[0]] != [[d["id"] for d in b] for b in epochs[1]]
        whole = [[(d["id"], d["drawn"]) for d in batch] for epoch in epochs for batch in epoch]
        torch.manual_seed(1234)  # must not matter
        parts = loader()
        n = len(epochs[0])
        assert take(parts, 2) + take(parts, n - 2) + take(parts, 3) + take(parts, 100) == whole
        resumed = loader()
        resumed.set_position(n)
        assert take(resumed, 100) == whole[n:]

    def test_workers_live_on(self):
        loader = train_loader("own", seed=5, aspect_ratio_grouping=False, num_workers=1, persistent_workers=True)
        first, pids = take(loader, 1000), loader.worker_pids
        second = take(loader, 1000)
        assert loader.worker_pids == pids
        assert [[i for i, _ in b] for b in first] == [[i for i, _ in b] for b in second] and first != second

    def test_incomplete_batches(self):
        loader = build.build_batch_data_loader(RECORDS, range(11), 4, drop_last=False)
        assert [[d["id"] for d in b] for _ in range(2) for b in loader] == 2 * [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        too_few = build.build_batch_data_loader(RECORDS, range(3), 4)
        assert list(too_few) == list(too_few) == []

    @pytest.mark.parametrize("grouping", [False, True])
    def test_iterable(self, grouping, caplog):
        class Stream(torchdata.IterableDataset):
            def __iter__(self):
                return iter(RECORDS)

        loader = train_loader(None, records=Stream(), aspect_ratio_grouping=grouping)
        first, second = list(loader), list(loader)
        assert [d["id"] for b in first for d in b] == [d["id"] for b in second for d in b]
        assert {d["drawn"] for b in first for d in b}.isdisjoint(d["drawn"] for b in second for d in b)
        assert "cannot be positioned" not in caplog.text


def _slow(record):
    time.sleep(0.01)
    return augment({**record, "image": torch.zeros(3, 100, 100)})


def _die(record):
    os.kill(os.getpid(), signal.SIGKILL)


class TestWorkers:
    @pytest.mark.parametrize("train", [True, False])
    def test_a_killed_worker(self, train):
        if train:
            loader = train_loader(mapper=_die, num_workers=1)
        else:
            loader = build_detection_test_loader(RECORDS, mapper=_die, num_workers=1)
        with pytest.raises(RuntimeError, match=r"(?s)worker was killed.*Use fewer workers .* now 1\)"):
            next(iter(loader))

    @pytest.mark.parametrize("while_waiting", [False, True])
    @pytest.mark.parametrize("kind", ["test", "grouped", "batches"])
    @pytest.mark.parametrize(
        ("number", "told"), [(signal.SIGKILL, r"killed .*Killed.*memory runs"), (signal.SIGSEGV, r"crashed .*Segment")]
    )
    def test_killed_at_any_moment(self, number, told, kind, while_waiting):
        """The explanation comes from asking for data, wherever the program is when the worker dies."""
        if kind == "test":
            loader = build_detection_test_loader(RECORDS * 30, mapper=_slow, num_workers=2)
        else:
            loader = train_loader(mapper=_slow, num_workers=2, aspect_ratio_grouping=kind == "grouped")
        batches = iter(loader)
        next(batches)
        threading.Timer(0.2, os.kill, (loader.worker_pids[0], number)).start()
        if not while_waiting:
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                time.sleep(0.01)  # where nothing is raised
        with pytest.raises(RuntimeError, match=rf"(?s)A data loading worker \S* ?{told}"):
            list(batches)

    def test_the_main_process_is_killed_while_they_start(self):
        """Torch's own check takes whatever process is their parent then, such as that of the system, for the main."""
        reading, writing = os.pipe()

        def outlive_the_main_process(worker_id):
            main = os.getppid()
            os.write(writing, b"%d\n" % os.getpid())
            while os.getppid() == main:
                time.sleep(0.01)

        def train():
            batches = iter(_loader.GuardedLoader([1] * 4, num_workers=1, worker_init_fn=outlive_the_main_process))
            time.sleep(60)
            list(batches)

        process = mp.get_context("fork").Process(target=train)
        process.start()
        os.close(writing)
        worker = int(os.read(reading, 20))
        process.kill()
        process.join()
        has_ended = bool(select.select([reading], [], [], 15)[0])  # once nobody can write
        os.close(reading)
        if not has_ended:
            os.kill(worker, signal.SIGKILL)
        assert has_ended

    def test_a_worker_that_ends_itself(self):
        loader = train_loader(mapper=lambda record: os._exit(3), num_workers=1)
        with pytest.raises(RuntimeError, match=r"ended by itself .*exit code 3"):
            next(iter(loader))

    @pytest.mark.parametrize("train", [True, False])
    def test_a_batch_that_cannot_be_sent(self, train, capfd):
        """By default Python prints why, and the main process waits without end."""

        def attach(record):
            return {**augment(record), "function": lambda: record}

        build = train_loader if train else functools.partial(build_detection_test_loader, RECORDS)
        with pytest.raises(RuntimeError, match=r"ended by itself .*exit code 1"):
            next(iter(build(mapper=attach, num_workers=1)))
        said = capfd.readouterr().err
        assert "cannot send a batch" in said and "<lambda>" in said and "has to be picklable" in said

    def test_an_error_of_a_connection(self, monkeypatch):
        """What a worker had not sent yet is missed before its end is known."""
        loader = train_loader(mapper=_slow, num_workers=1)
        batches = iter(loader.dataset)

        class Broken:
            def __init__(self, iterator):
                self._workers = iterator._workers

            def __next__(self):
                threading.Timer(0.2, os.kill, (self._workers[0].pid, signal.SIGKILL)).start()
                raise ConnectionResetError(104, "Connection reset by peer")

        keep = batches._iterator
        batches._iterator = Broken(keep)
        with pytest.raises(RuntimeError, match=r"worker was killed .*Killed"):
            next(batches)

    @pytest.mark.parametrize(
        ("text", "advice"),
        [
            ("DataLoader worker (pid 12) is killed by signal: Killed. ", "memory runs out.*Use fewer workers"),
            ("DataLoader worker (pid(s) 12, 13) exited unexpectedly", "memory runs out.*now 3"),
            ("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that ...", "--shm-size"),
            ("unable to mmap 512 bytes from file </torch_1>: Cannot allocate memory (12)", "--shm-size"),
            ("DataLoader worker (pid 12) is killed by signal: Segmentation fault. ", "faulthandler"),
            ("received 0 items of ancdata", "ulimit -n"),
        ],
    )
    def test_advice(self, text, advice):
        told = explain_worker_error(RuntimeError(text), 3)
        assert re.search(advice, told) and text.strip() in told

    def test_objects_of_the_main_process_are_not_collected(self):
        """A collection would copy their pages into each worker; only what the worker made itself is looked at."""
        loader = build_detection_test_loader(
            [0], mapper=lambda _: (gc.get_freeze_count(), len(gc.get_objects())), num_workers=1
        )
        ((frozen, tracked),) = next(iter(loader))
        assert frozen > 10 * tracked

    @pytest.mark.parametrize("method", ["spawn", "forkserver"])
    def test_workers_that_are_not_forked(self, method):
        """The parent of one that a server has forked is never the main process."""
        loader = _loader.GuardedLoader([3, 4], num_workers=1, multiprocessing_context=method)
        assert torch.cat(list(loader)).tolist() == [3, 4]

    def test_own_start_of_workers(self, tmp_path):
        path = tmp_path / "started"
        loader = train_loader(num_workers=1, worker_init_fn=lambda worker_id: path.write_text(str(worker_id)))
        next(iter(loader))
        assert path.read_text() == "0"

    def test_errors_of_a_mapper_are_left_as_they_are(self):
        def fail(record):
            raise RuntimeError("my own")

        for num_workers in (0, 1):
            with pytest.raises(RuntimeError, match="my own"):
                next(iter(train_loader(mapper=fail, num_workers=num_workers)))
        assert explain_worker_error(RuntimeError("my own"), 1) is None

    def test_memory_is_logged(self, monkeypatch, caplog):
        monkeypatch.setattr(_loader, "_REPORT_MEMORY_AFTER", 2)
        caplog.set_level(logging.INFO, "detectron2.data.build")
        take(train_loader(num_workers=1), 3)
        assert ("Memory of data loading: 1 workers, each" in caplog.text) == os.path.exists("/proc/self/status")

    def test_bad_images_are_counted(self, caplog):
        def read(record):
            if record["id"] % 2:
                raise OSError("damaged")
            return augment(record)

        loader = train_loader(seed=5, mapper=read, on_bad_image="skip", aspect_ratio_grouping=False, num_workers=2)
        stream = take(loader, 10)
        assert all(i % 2 == 0 for batch in stream for i, _ in batch)
        assert "times so far an image could not be read" in caplog.text
        ids = [[i for i, _ in b] for b in stream]
        for workers in (0, 1):
            again = train_loader(
                seed=5, mapper=read, on_bad_image="skip", aspect_ratio_grouping=False, num_workers=workers
            )
            assert [[i for i, _ in b] for b in take(again, 10)] == ids

    @pytest.mark.parametrize(("wanted", "used"), [(0, 0), (1, 1), (2, 2), (64, 2)])
    def test_no_more_than_cores(self, monkeypatch, caplog, wanted, used):
        monkeypatch.setattr(_loader.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
        caplog.set_level("INFO")
        assert build_detection_test_loader(RECORDS, mapper=dict, num_workers=wanted).num_workers == used
        assert train_loader(num_workers=wanted, aspect_ratio_grouping=False).num_workers == used
        assert ("using 2, the number of cores" in caplog.text) == (wanted > used)


class TestAllRanks:
    def test_alone(self):
        assert build._on_all_ranks(lambda: 3) == 3
        with pytest.raises(KeyError):
            build._on_all_ranks(lambda: {}[1])

    def test_two_processes(self, tmp_path):
        """Files are checked by rank 0 only; what it finds stops the other one as well."""
        args = (tmp_path / "meet").as_uri(), str(tmp_path)
        mp.start_processes(_build_on_rank, args=args, nprocs=2, start_method="fork")
        texts = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
        assert texts[0].startswith("DatasetError") and "cannot be found" in texts[0]
        assert texts[1].startswith("RuntimeError: Rank 0 cannot load the training data: DatasetError")
        assert "cannot be found" in texts[1]


def _build_on_rank(rank, address, folder):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": 1, "category_id": 0}
    record = {"file_name": "/nowhere/a.jpg", "image_id": 1, "width": 30, "height": 20, "annotations": [box]}
    DatasetCatalog.register("test_loader_two", lambda: [record])
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS = ("test_loader_two",), 0
    try:
        build_detection_train_loader(cfg)
    except Exception as e:
        with open(f"{folder}/{rank}.txt", "w") as f:
            f.write(f"{type(e).__name__}: {e}")
    dist.destroy_process_group()
