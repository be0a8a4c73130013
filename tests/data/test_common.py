"""Data sets made of lists and other data sets."""

import pickle

import pytest
import torch
import torch.utils.data as torchdata

from detectron2.data.common import (
    AspectRatioGroupedDataset,
    DatasetFromList,
    MapDataset,
    ToIterableDataset,
    set_default_dataset_from_list_serialize_method,
)


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

    def test_is_sent_to_other_processes(self):
        dataset = pickle.loads(pickle.dumps(MapDataset([1, 2], lambda x: x * 10)))
        assert isinstance(dataset, MapDataset) and dataset[1] == 20

    def test_iterable(self):
        dataset = MapDataset(_Stream([1, 2, 3, 4]), lambda x: x * 10 if x != 2 else None)
        assert isinstance(dataset, torchdata.IterableDataset)
        assert list(dataset) == [10, 30, 40] and len(dataset) == 4
        assert list(pickle.loads(pickle.dumps(MapDataset(_Stream([1]), lambda x: x)))) == [1]


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

    def test_groups(self):
        sizes = [(2, 1), (1, 2), (1, 1), (3, 1), (5, 1), (9, 1), (7, 1)]
        elements = [{"width": w, "height": h, "i": i} for i, (w, h) in enumerate(sizes)]
        batches = list(AspectRatioGroupedDataset(elements, 2))
        # A square counts as high; the last wide one waits in vain for a fourth.
        assert [[e["i"] for e in batch] for batch in batches] == [[1, 2], [0, 3], [4, 5]]

    def test_elements_with_nothing_but_an_image(self):
        """A mapper of one's own may leave out the sizes, as the one in the tutorial does."""
        elements = [{"image": torch.zeros(3, h, w)} for w, h in [(2, 1), (1, 2), (3, 1), (1, 3)]]
        shapes = [[tuple(e["image"].shape[1:]) for e in b] for b in AspectRatioGroupedDataset(elements, 2)]
        assert shapes == [[(1, 2), (1, 3)], [(2, 1), (3, 1)]]
