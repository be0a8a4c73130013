"""Data sets made of lists and other data sets."""

import pickle
import random

import numpy as np
import pytest
import torch
import torch.utils.data as torchdata

from detectron2.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    ShardedIterableDataset,
    ToIterableDataset,
    set_default_dataset_from_list_serialize_method,
)
from detectron2.utils import comm


class _Stream(torchdata.IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)

    def __len__(self):
        return len(self.items)


class TestDatasetFromList:
    @pytest.mark.parametrize("serialize", [True, False])
    def test_empty(self, serialize):
        dataset = DatasetFromList([], serialize=serialize)
        assert len(dataset) == 0
        with pytest.raises(IndexError):
            dataset[0]

    @pytest.mark.parametrize("serialize", [True, False, tuple])
    def test_elements(self, serialize):
        items = [{"a": [1, 2.5]}, "b", None, ("c", {3})]
        dataset = DatasetFromList(items, serialize=serialize)
        assert len(dataset) == 4 and [dataset[i] for i in range(4)] == items and dataset[-1] == items[-1]
        with pytest.raises(IndexError):
            dataset[4]
        with pytest.raises(IndexError):
            dataset[-5]

    @pytest.mark.parametrize("serialize", [True, False])
    def test_elements_can_be_changed(self, serialize):
        items = [{"a": [1]}]
        dataset = DatasetFromList(items, copy=True, serialize=serialize)
        dataset[0]["a"].append(2)
        assert items == [{"a": [1]}] and dataset[0] == {"a": [1]}

    def test_without_copy(self):
        items = [{"a": [1]}]
        assert DatasetFromList(items, copy=False, serialize=False)[0] is items[0]

    def test_default_method_is_restored(self):
        seen = []
        with pytest.raises(RuntimeError), set_default_dataset_from_list_serialize_method(lambda x: seen.append(x) or x):
            assert DatasetFromList(["a"])[0] == "a"
            raise RuntimeError
        assert seen == [["a"]]
        DatasetFromList(["b"])
        assert seen == [["a"]]

    def test_is_sent_to_other_processes(self):
        dataset = DatasetFromList([{"a": i} for i in range(100)])
        other = pickle.loads(pickle.dumps(dataset))
        assert [other[i] for i in range(100)] == [{"a": i} for i in range(100)]

    def test_in_workers(self):
        loader = torchdata.DataLoader(DatasetFromList(list(range(6))), batch_size=2, num_workers=2, collate_fn=list)
        assert [x for batch in loader for x in batch] == list(range(6))


class TestMapDataset:
    def test_empty(self):
        dataset = MapDataset([], str)
        assert len(dataset) == 0
        with pytest.raises(IndexError):
            dataset[0]

    def test_maps(self):
        dataset = MapDataset([1, 2], str)
        assert len(dataset) == 2 and [dataset[0], dataset[1]] == ["1", "2"]

    def test_attributes_that_projects_read(self):
        dataset = MapDataset([1, 2], lambda x: x + 1)
        assert dataset._dataset == [1, 2] and dataset._map_func(1) == 2
        assert dataset._fallback_candidates == {0, 1} and 0 <= dataset._rng.random() < 1

    def test_none_takes_another(self):
        dataset = MapDataset(list(range(10)), lambda x: x if x >= 5 else None)
        assert all(dataset[i] >= 5 for i in range(10))
        assert dataset[7] == 7
        assert dataset._fallback_candidates == {5, 6, 7, 8, 9} | (dataset._fallback_candidates & set(range(5)))
        assert 0 not in dataset._fallback_candidates

    def test_always_none(self):
        dataset = MapDataset([{"file_name": f"{i}.jpg"} for i in range(5)], lambda x: None)
        with pytest.raises(RuntimeError, match=r"every element tried in its place \(5 in this call\)"):
            dataset[3]

    def test_repeated_none_is_logged(self, caplog):
        MapDataset(list(range(50)), lambda x: 1 if x == 49 else None)[0]
        assert "None 3 times in a row" in caplog.text

    def test_exception_names_the_element(self, caplog):
        def fail(element):
            element.clear()
            raise LookupError("no such thing")

        dataset = MapDataset([{}, {"file_name": "b.jpg", "image_id": 7}], fail)
        with pytest.raises(LookupError, match="no such thing") as e:
            dataset[1]
        told = "".join(getattr(e.value, "__notes__", [caplog.text]))  # Python 3.10 has no notes: it is logged
        assert "dataset element 1 (file_name 'b.jpg', image_id 7)" in told

    @pytest.mark.parametrize("kind", [list, lambda elements: _Stream(elements)], ids=["indexed", "iterable"])
    def test_a_mapper_that_ends_the_loop(self, kind):
        def first_person(element):
            return next(x for x in element["annotations"] if x == "person")

        dataset = MapDataset(
            kind([{"annotations": ["person"]}, {"file_name": "b.jpg", "annotations": []}]), first_person
        )
        with pytest.raises(RuntimeError, match=r"mapper .*first_person raised StopIteration while .*'b\.jpg'"):
            list(torchdata.DataLoader(dataset, batch_size=None))

    def test_is_sent_to_other_processes(self):
        dataset = pickle.loads(pickle.dumps(MapDataset([1, 2], lambda x: x * 10)))
        assert isinstance(dataset, MapDataset) and dataset[1] == 20

    def test_iterable(self):
        dataset = MapDataset(_Stream([1, 2, 3, 4]), lambda x: x * 10 if x != 2 else None)
        assert isinstance(dataset, torchdata.IterableDataset)
        assert list(dataset) == [10, 30, 40] and len(dataset) == 4
        assert list(pickle.loads(pickle.dumps(MapDataset(_Stream([1]), lambda x: x)))) == [1]


def _fail_for_odd(element):
    if element % 2:
        raise OSError(f"cannot read the image {element}")
    return element


class TestBadImages:
    def test_stop(self):
        with pytest.raises(OSError, match="image 1"):
            MapDataset([0, 1], _fail_for_odd)[1]
        with pytest.raises(OSError, match="image 1"):
            list(MapDataset(_Stream([0, 1]), _fail_for_odd))
        assert MapDataset([0], _fail_for_odd).num_bad_images == 0

    def test_skip(self, caplog):
        dataset = MapDataset(list(range(6)), _fail_for_odd, on_bad_image="skip")
        assert all(dataset[i] % 2 == 0 for i in range(6)) and dataset[4] == 4
        # Each of the three was tried at least once, and perhaps drawn for another before it was known.
        assert dataset._fallback_candidates <= {0, 2, 4} | {1, 3, 5} and dataset.num_bad_images >= 3
        assert "Skipped dataset element 1: OSError: cannot read the image 1" in caplog.text

    def test_skip_in_an_iterable_one(self, caplog):
        dataset = MapDataset(_Stream([0, 1, 2, 3]), _fail_for_odd, on_bad_image="skip")
        assert list(dataset) == [0, 2] and dataset._bad_images.total == 2
        assert "Skipped dataset element 3" in caplog.text

    def test_mistakes_of_a_program_are_not_skipped(self):
        with pytest.raises(TypeError):
            MapDataset([None, 0], _fail_for_odd, on_bad_image="skip")[0]

    def test_unknown_policy(self):
        with pytest.raises(ValueError, match="'ignore'"):
            MapDataset([1], str, on_bad_image="ignore")
        with pytest.raises(ValueError, match="'ignore'"):
            MapDataset(_Stream([1]), str, on_bad_image="ignore")

    def test_nothing_can_be_read(self):
        for dataset in ([1] * 500, _Stream([1] * 500)):
            with pytest.raises(RuntimeError, match=r"100 elements one after the other.*image folder"):
                next(iter(MapDataset(dataset, _fail_for_odd, on_bad_image="skip")))
        with pytest.raises(RuntimeError, match="every element tried"):
            MapDataset([1, 3], _fail_for_odd, on_bad_image="skip")[0]

    def test_the_log_does_not_grow_without_bound(self, caplog):
        list(MapDataset(_Stream([2, 1] * 50 + [2, 3]), _fail_for_odd, on_bad_image="skip"))
        assert len([r for r in caplog.records if "Skipped" in r.getMessage()]) == 20
        assert "only counted" in caplog.records[-1].getMessage()

    def test_counted_in_all_workers(self):
        dataset = MapDataset(list(range(8)), _fail_for_odd, on_bad_image="skip")
        loader = torchdata.DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=list)
        assert all(x % 2 == 0 for (x,) in loader)
        assert dataset.num_bad_images >= 4

    @pytest.mark.parametrize("count", [12, 1000])
    def test_what_comes_instead_depends_on_the_sample_only(self, count):
        def replacements(order):
            dataset = MapDataset(list(range(count)), lambda x: x if x < 6 else None)
            result = {}
            for index in order:
                random.seed(index)  # as a loader does for each sample
                result[index] = dataset[index]
            return result

        some = list(range(6, 12))
        assert replacements(some) == replacements(some[::-1]) or count > 100 * 6
        assert set(replacements(some).values()) <= set(range(6))


def _draw(index):
    """Numbers from all three generators."""
    return index, random.random(), float(np.random.rand()), float(torch.rand(()))


class TestRandomNumbersOfSamples:
    def draw(self, num_workers=0, seed=3, sampler=(0, 1, 1, 2)):
        dataset = ToIterableDataset(MapDataset(list(range(3)), _draw), list(sampler))
        dataset.seed = seed
        return list(torchdata.DataLoader(dataset, batch_size=None, num_workers=num_workers))

    def test_depend_on_seed_and_place(self):
        samples = self.draw()
        assert [s[0] for s in samples] == [0, 1, 1, 2]
        assert len({number for s in samples for number in s[1:]}) == 12  # generators do not repeat each other, either
        assert self.draw() == samples
        assert not {s[1] for s in self.draw(seed=4)} & {s[1] for s in samples}
        assert self.draw(sampler=(2, 1))[1] == samples[1]

    def test_do_not_depend_on_workers(self):
        assert self.draw(2) == self.draw(1) == self.draw(0)

    def test_leave_those_of_the_main_process_alone(self):
        def following():
            return random.random(), np.random.rand(), float(torch.rand(()))

        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        expected = following()
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        dataset = ToIterableDataset(MapDataset([0], _draw), [0])
        dataset.seed = 1
        list(dataset)
        assert following() == expected

    def test_are_put_back_after_an_error(self):
        dataset = ToIterableDataset(MapDataset([1], _fail_for_odd), [0])
        dataset.seed, before = 1, random.getstate()
        with pytest.raises(OSError):
            list(dataset)
        assert random.getstate() == before

    def test_ranks_differ(self, monkeypatch):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        seen = set()
        for rank in (0, 1):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            seen |= {s[1] for s in self.draw()}
        assert len(seen) == 8


class TestShardedIterableDataset:
    def test_empty(self):
        assert list(ShardedIterableDataset(_Stream([]))) == []

    def test_alone(self):
        assert list(ShardedIterableDataset(_Stream([1, 2, 3]))) == [1, 2, 3]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_ranks_and_workers(self, monkeypatch, num_workers):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        shares = []
        for rank in (0, 1):
            monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
            dataset = ShardedIterableDataset(_Stream(list(range(11))))
            shares.append(sorted(torchdata.DataLoader(dataset, batch_size=None, num_workers=num_workers)))
        assert sorted(shares[0] + shares[1]) == list(range(11)) and abs(len(shares[0]) - len(shares[1])) <= 1


class TestToIterableDataset:
    def test_empty(self):
        assert list(ToIterableDataset([], [])) == []

    def test_order_of_the_sampler(self):
        dataset = ToIterableDataset("abcd", [3, 0, 0])
        assert list(dataset) == ["d", "a", "a"] and len(dataset) == 3

    def test_wrong_arguments(self):
        with pytest.raises(TypeError):
            ToIterableDataset(_Stream([1]), [0])
        with pytest.raises(TypeError):
            ToIterableDataset("abc", 3)

    @pytest.mark.parametrize(("workers", "chunk"), [(0, 1), (1, 1), (2, 1), (2, 3)])
    def test_workers_share(self, workers, chunk):
        dataset = ToIterableDataset(list(range(100, 120)), list(range(20)), shard_chunk_size=chunk)
        loader = torchdata.DataLoader(dataset, batch_size=None, num_workers=workers)
        assert sorted(loader) == list(range(100, 120))

    def test_chunks_keep_batches_in_order(self):
        dataset = ToIterableDataset(list(range(12)), list(range(12)), shard_chunk_size=3)
        loader = torchdata.DataLoader(dataset, batch_size=3, num_workers=2, collate_fn=list)
        assert list(loader) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]

    def test_without_sharding_every_worker_yields_all(self):
        dataset = ToIterableDataset(list(range(4)), list(range(4)), shard_sampler=False)
        assert sorted(torchdata.DataLoader(dataset, batch_size=None, num_workers=2)) == [0, 0, 1, 1, 2, 2, 3, 3]


class TestAspectRatioGroupedDataset:
    def test_empty(self):
        assert list(AspectRatioGroupedDataset([], 2)) == []

    def test_samples_without_proportions(self):
        with pytest.raises(ValueError, match=r"neither 'width' and 'height' nor 'image', only \['boxes', 'width'\]"):
            next(iter(AspectRatioGroupedDataset([{"width": 3, "boxes": 1}], 2)))

    def test_groups(self):
        sizes = [(2, 1), (1, 2), (1, 1), (3, 1), (5, 1), (9, 1), (7, 1)]
        elements = [{"width": w, "height": h, "i": i} for i, (w, h) in enumerate(sizes)]
        batches = list(AspectRatioGroupedDataset(elements, 2))
        # A square counts as high; the last wide one waits in vain for a fourth.
        assert [[e["i"] for e in batch] for batch in batches] == [[1, 2], [0, 3], [4, 5]]

    def test_starts_anew(self):
        dataset = AspectRatioGroupedDataset([{"width": 2, "height": 1, "i": i} for i in range(3)], 2)
        assert [[e["i"] for e in b] for b in dataset] == [[0, 1]] == [[e["i"] for e in b] for b in dataset]

    def test_elements_with_nothing_but_an_image(self):
        """A mapper of one's own may leave out the sizes, as the one in the tutorial does."""
        elements = [{"image": torch.zeros(3, h, w)} for w, h in [(2, 1), (1, 2), (3, 1), (1, 3)]]
        shapes = [[tuple(e["image"].shape[1:]) for e in b] for b in AspectRatioGroupedDataset(elements, 2)]
        assert shapes == [[(1, 2), (1, 3)], [(2, 1), (3, 1)]]
