"""Catalogs: registration, idempotence, helpful errors, lazily filled metadata."""

import copy
import functools
import pickle

import numpy as np
import pytest

from detectron2.data.catalog import DatasetCatalog, Metadata, MetadataCatalog, _DatasetCatalog, _MetadataCatalog
from detectron2.utils import comm


@pytest.fixture
def datasets():
    return _DatasetCatalog()


@pytest.fixture
def metadata():
    return _MetadataCatalog()


class TestDatasetCatalog:
    def test_empty(self, datasets):
        assert datasets.list() == []
        assert "x" not in datasets
        with pytest.raises(KeyError, match="not registered"):
            datasets.get("x")
        with pytest.raises(KeyError):
            datasets.remove("x")

    def test_round_trip(self, datasets):
        datasets.register("a", lambda: [1])
        assert "a" in datasets and datasets.list() == ["a"] and datasets.get("a") == [1]
        assert "a" in str(datasets)
        assert datasets.pop("a")() == [1]
        assert "a" not in datasets

    def test_remove(self, datasets):
        datasets.register("a", lambda: [1])
        datasets.remove("a")
        datasets.register("a", lambda: [2])
        assert datasets.get("a") == [2]

    def test_not_a_function(self, datasets):
        with pytest.raises(TypeError, match="lambda: data"):
            datasets.register("a", [1])

    def test_misspelt_name_shows_the_nearest(self, datasets):
        datasets.register("balloon_train", list)
        with pytest.raises(KeyError) as e:
            datasets.get("baloon_train")
        assert "Did you mean 'balloon_train'?" in str(e.value) and "\\n" not in str(e.value)

    def test_same_source_twice_is_fine(self, datasets):
        for _ in range(2):  # as when a notebook cell is run twice
            for split in ("train", "val"):
                datasets.register(split, lambda split=split: [split])
        assert datasets.get("train") == ["train"] and datasets.get("val") == ["val"]

    def test_same_closure_twice_is_fine_another_is_not(self, datasets):
        def make(value):
            return lambda: [value]

        datasets.register("a", make("x"))
        datasets.register("a", make("x"))
        with pytest.raises(ValueError, match="already registered"):
            datasets.register("a", make("y"))

    def test_defaults_differ(self, datasets):
        def make(value):
            return lambda v=value: [v]

        datasets.register("a", make(1))
        with pytest.raises(ValueError):
            datasets.register("a", make(2))

    def test_array_default_is_only_equal_to_itself(self, datasets):
        def make(value):
            return lambda v=value: v

        array = np.zeros(3)
        datasets.register("a", make(array))
        datasets.register("a", make(array))
        with pytest.raises(ValueError):
            datasets.register("a", make(np.zeros(3)))

    def test_partials(self, datasets):
        datasets.register("a", functools.partial(sorted, [2, 1], reverse=True))
        datasets.register("a", functools.partial(sorted, [2, 1], reverse=True))
        for other in (
            functools.partial(sorted, [2, 1], reverse=False),
            functools.partial(sorted, [2, 3], reverse=True),
            functools.partial(sorted, [2, 1]),
            list,
        ):
            with pytest.raises(ValueError, match="remove"):
                datasets.register("a", other)
        assert datasets.get("a") == [2, 1]

    def test_conflict_shows_both(self, datasets):
        datasets.register("a", functools.partial(sorted, "some/file.json", reverse=True))
        with pytest.raises(ValueError) as e:
            datasets.register("a", functools.partial(sorted, "another/file.json"))
        assert "builtins.sorted('some/file.json', reverse=True)" in str(e.value)
        assert "builtins.sorted('another/file.json')" in str(e.value)

        class Loader:
            def __call__(self):
                return []

            def __repr__(self):
                return "<the loader>"

        with pytest.raises(ValueError, match="<the loader>"):
            datasets.register("a", Loader())

        def mine():
            return []

        datasets.register("b", mine)
        with pytest.raises(ValueError, match=r"mine \(.*test_catalog.py:\d+\)\n +now: +.*<lambda> \(.*test_catalog.py"):
            datasets.register("b", lambda: [1])

    def test_conflict_is_an_assertion_error_too(self, datasets):
        datasets.register("a", list)
        with pytest.raises(AssertionError):
            datasets.register("a", dict)


class TestMetadata:
    def test_empty(self):
        m = Metadata(name="x")
        assert m.as_dict() == {"name": "x"}
        assert m.get("thing_classes") is None and m.get("thing_classes", 3) == 3
        assert not hasattr(m, "thing_classes")

    def test_set_and_get(self):
        m = Metadata(name="x").set(thing_classes=["a"], ignore_label=255)
        assert m.thing_classes == ["a"] and m.get("ignore_label") == 255
        assert m.as_dict() == {"name": "x", "thing_classes": ["a"], "ignore_label": 255}

    def test_equal_value_again(self):
        m = Metadata(name="x").set(thing_classes=["a"])
        m.thing_classes = ["a"]
        with pytest.raises(ValueError, match=r"MetadataCatalog.remove\('x'\)") as e:
            m.thing_classes = ["b"]
        assert isinstance(e.value, AssertionError) and "['a']" in str(e.value) and "['b']" in str(e.value)
        assert m.thing_classes == ["a"]

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ([], ["a"], "differ at index 0: missing and 'a'"),
            (list("abcdefghij"), list("abcdefghix"), "differ at index 9: 'j' and 'x'"),
            ({i: i for i in range(90)}, {**{i: i for i in range(90)}, 80: 0}, "differ at 80: 80 and 0"),
            ({1: 0}, {}, "differ at 1: 0 and missing"),
            (["a"], ("a",), "a list and a tuple"),
            ("x.json", "y.json", r"'x.json' and cannot be changed to 'y.json'\."),
        ],
    )
    def test_conflict_shows_where_tables_differ(self, old, new, message):
        m = Metadata(name="x").set(key=old)
        with pytest.raises(ValueError, match=message):
            m.key = new

    def test_unknown_key(self):
        m = Metadata(name="x").set(thing_classes=["a"])
        with pytest.raises(AttributeError, match="Did you mean 'thing_classes'"):
            _ = m.thing_class
        with pytest.raises(AttributeError, match="It has: thing_classes"):
            _ = m.stuff_colors
        with pytest.raises(AttributeError, match="which is not set either"):
            _ = Metadata(name="y").stuff_clases

    def test_misspelt_key_is_warned_of(self, caplog):
        Metadata(name="x").thing_class = ["a"]
        assert "did you mean 'thing_classes'" in caplog.text
        caplog.clear()
        Metadata(name="x").set(thing_classes=["a"], my_own_key=3)
        assert not caplog.records

    def test_renamed_keys(self, caplog):
        m = Metadata(name="x")
        m.class_names = ["a"]
        assert m.thing_classes == ["a"] and m.class_names == ["a"] and m.get("class_names") == ["a"]
        assert "now called 'thing_classes'" in caplog.text

    def test_suggestions(self):
        m = Metadata(name="x").suggest(keypoint_names=["a", "b"], keypoint_flip_map=[("a", "b")])
        assert m.keypoint_names == ["a", "b"] and m.get("keypoint_flip_map") == [("a", "b")]
        assert m.as_dict() == {"name": "x", "keypoint_names": ["a", "b"], "keypoint_flip_map": [("a", "b")]}
        m.keypoint_names = ["a", "b"]  # the same: the rest goes with it
        assert m.keypoint_flip_map == [("a", "b")]
        for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
            assert other == m and other.as_dict() == m.as_dict()

    def test_suggestions_give_way(self):
        m = Metadata(name="x").suggest(keypoint_names=["a"], keypoint_flip_map=[])
        m.keypoint_names = ["c"]
        assert m.as_dict() == {"name": "x", "keypoint_names": ["c"]} and not hasattr(m, "keypoint_flip_map")
        m.suggest(keypoint_names=["a"], keypoint_flip_map=[])  # what is loaded twice
        assert m.as_dict() == {"name": "x", "keypoint_names": ["c"]}

    def test_copies(self):
        m = Metadata(name="x").set(thing_classes=["a"])
        for other in (copy.copy(m), copy.deepcopy(m), pickle.loads(pickle.dumps(m))):
            assert other == m and other.thing_classes == ["a"]


class TestMetadataCatalog:
    def test_empty(self, metadata):
        assert metadata.list() == [] and len(metadata) == 0 and "x" not in metadata
        with pytest.raises(ValueError):
            metadata.get("")
        with pytest.raises(KeyError):
            metadata.remove("x")
        with pytest.raises(KeyError):
            metadata["x"]

    def test_same_object(self, metadata):
        assert metadata.get("x") is metadata.get("x") is metadata["x"]
        assert metadata.get("x").name == "x" and metadata.list() == ["x"] and "x" in str(metadata)

    def test_remove(self, metadata):
        metadata.get("x").thing_classes = ["a"]
        metadata.remove("x")
        metadata.get("x").thing_classes = ["b"]
        assert metadata.get("x").thing_classes == ["b"]
        del metadata["x"]
        assert "x" not in metadata

    def test_lazy(self, metadata):
        calls = []

        def make():
            calls.append(1)
            return {"thing_classes": ["a"]}

        metadata.register_lazy("x", make)
        assert "x" in metadata and metadata.list() == ["x"] == list(metadata) and not calls
        assert metadata["x"].thing_classes == ["a"]
        assert metadata.get("x") is metadata["x"] and len(calls) == 1 == len(metadata)
        with pytest.raises(ValueError):
            metadata.register_lazy("x", make)

    def test_lazy_that_fails_stays(self, metadata):
        outcomes = iter([OSError("first"), {"year": 2007}])

        def make():
            outcome = next(outcomes)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        metadata.register_lazy("x", make)
        with pytest.raises(OSError, match="first"):
            metadata.get("x")
        assert metadata.get("x").year == 2007


class TestNotLoadedYet:
    """What a file tells is known before and after the data set is loaded."""

    def test_derived_when_asked_for(self):
        metadata, calls = Metadata(name="x", evaluator_type="coco"), []

        def read():
            calls.append(metadata.get("thing_classes"))  # it may ask itself
            metadata.set(thing_classes=["a"])

        metadata.derive(["thing_classes", "keypoint_names"], read)
        assert metadata.evaluator_type == "coco" and metadata.get("stuff_classes") is None and calls == []
        assert metadata.thing_classes == ["a"] == metadata.get("thing_classes") and calls == [None]
        assert metadata.get("keypoint_names") is None and calls == [None]
        assert metadata.as_dict() == {"name": "x", "evaluator_type": "coco", "thing_classes": ["a"]}

    def test_what_is_set_counts(self):
        metadata = Metadata(name="x", thing_classes=["b"]).derive(["thing_classes"], lambda: 1 / 0)
        assert metadata.thing_classes == ["b"] and metadata.as_dict()["thing_classes"] == ["b"]

    def test_all_at_once(self):
        metadata = Metadata(name="x").derive(["thing_classes"], lambda: metadata.set(thing_classes=["a"]))
        assert pickle.loads(pickle.dumps(copy.copy(Metadata(name="x").derive(["a"], dict)))).get("a") is None
        assert metadata.as_dict() == {"name": "x", "thing_classes": ["a"]}

    def test_a_file_that_is_not_there(self, tmp_path):
        file = tmp_path / "a.json"
        metadata = Metadata(name="x").derive(["thing_classes"], file.read_text)
        assert metadata.get("thing_classes") is None and metadata.as_dict() == {"name": "x"}
        with pytest.raises(AttributeError, match=r"cannot be read from the data set's file: .*No such file.*a\.json"):
            metadata.thing_classes  # noqa: B018
        with pytest.raises(ValueError, match=r"Me needs \['thing_classes', 'stuff_classes'\] .* No such file"):
            metadata.require(["thing_classes", "stuff_classes"], "Me")

    def test_one_error_for_all_that_is_missing(self):
        metadata = Metadata(name="x", stuff_classes=["a"])
        with pytest.raises(ValueError, match="Me needs") as caught:
            metadata.require(["stuff_classes", "stuff_dataset_id_to_contiguous_id", "json_file"], "Me")
        text = str(caught.value)
        assert ".set(stuff_dataset_id_to_contiguous_id={0: 0, 187: 1}, json_file=...)" in text
        assert "stuff_classes=" not in text

    def test_registered_with_a_function(self):
        name = "test_not_loaded_yet"
        DatasetCatalog.register(name, lambda: MetadataCatalog.get(name).set(thing_classes=["a"]) and [])
        try:
            with pytest.raises(AttributeError, match=rf"not loaded yet.*DatasetCatalog\.get\('{name}'\) first"):
                MetadataCatalog.get(name).thing_classes  # noqa: B018
            DatasetCatalog.get(name)
            assert MetadataCatalog.get(name).thing_classes == ["a"]
            with pytest.raises(AttributeError) as caught:
                MetadataCatalog.get(name).stuff_classes  # noqa: B018
            assert "not loaded" not in str(caught.value)
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("processes", [1, 2])
def test_catalogs_belong_to_a_process(datasets, monkeypatch, processes):
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    errors = []
    for ask in (lambda: datasets.get("leaves"), lambda: Metadata(name="leaves").thing_classes):
        with pytest.raises((KeyError, AttributeError)) as caught:
            ask()
        errors.append("Each process has its own catalogs: register in the function that launch()" in str(caught.value))
    assert errors == [processes == 2] * 2
