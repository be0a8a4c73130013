"""Files that try to run code, or to reach NumPy and PyTorch with forged state, are refused; nothing of them runs."""

import builtins
import io
import os
import pickle
import re
import subprocess
import zipfile
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import torch
import yacs.config

from detectron2.checkpoint import DetectionCheckpointer, UnsafeCheckpointError
from detectron2.config import CfgNode
from detectron2.utils.safe_pickle import read_pickle

MARK = "mark_of_the_attacker"


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


class CustomState:
    """Pickles as an instance with state."""

    def __init__(self):
        self.x = 1


def hostile(path):
    touch = f"open({str(path)!r}, 'w').close()"
    return {
        "os.system": Calls(os.system, f"touch {path}"),
        "subprocess": Calls(subprocess.check_output, ["touch", str(path)]),
        "eval": Calls(eval, touch),
        "exec": Calls(exec, touch),
        "open": Calls(open, str(path), "w"),
        "import": Calls(builtins.__import__, "antigravity"),
        "getattr": Calls(getattr, "text", "upper"),
        "instance": CustomState(),
        "nested": {"model": {"a": [({"b": Calls(os.mkdir, str(path))},)]}},
        "beside weights": {"model": {"a": torch.ones(1)}, "trainer": Calls(os.mkdir, str(path))},
        "unsafe torch.load": Calls(torch.load, str(path)),
        "function as value": {"model": {}, "hook": os.getcwd},
        "module attribute": {"model": {}, "hook": np.load},
    }


NAMES = list(hostile("x"))


def load(path):
    return DetectionCheckpointer(torch.nn.Linear(1, 1)).load(str(path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles(tmp_path, name, protocol):
    mark, path = tmp_path / MARK, tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(hostile(mark)[name], protocol=protocol))
    with pytest.raises(UnsafeCheckpointError, match=r"model\.pkl was not loaded"):
        load(path)
    assert not mark.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("new_format", [True, False])
def test_hostile_torch_files(tmp_path, name, new_format):
    mark, path = tmp_path / MARK, tmp_path / "model.pth"
    torch.save(hostile(mark)[name], path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeCheckpointError, match=r"model\.pth was not loaded"):
        load(path)
    assert not mark.exists()


def test_the_error_names_the_type_and_is_of_both_kinds(tmp_path):
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Calls(os.system, "true")))
    with pytest.raises(UnsafeCheckpointError, match=rf"{os.system.__module__}\.system") as caught:
        load(path)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, pickle.UnpicklingError)
    torch.save({"a": CustomState()}, tmp_path / "model.pth")
    with pytest.raises(UnsafeCheckpointError, match="CustomState"):
        load(tmp_path / "model.pth")


def test_a_pickle_hidden_in_a_zip(tmp_path):
    mark, path = tmp_path / MARK, tmp_path / "model.pth"
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as good, zipfile.ZipFile(path, "w") as bad:
        for entry in good.infolist():
            content = good.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = pickle.dumps(Calls(os.mkdir, str(mark)), protocol=2)
            bad.writestr(entry.filename, content)
    with pytest.raises(UnsafeCheckpointError, match="mkdir"):
        load(path)
    assert not mark.exists()


def test_the_environment_cannot_switch_the_check_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    mark = tmp_path / MARK
    torch.save(Calls(os.mkdir, str(mark)), tmp_path / "model.pth")
    with pytest.raises(UnsafeCheckpointError):
        load(tmp_path / "model.pth")
    assert not mark.exists()


@pytest.mark.parametrize("new_format", [True, False])
def test_object_arrays_in_torch_files(tmp_path, new_format):
    path = tmp_path / "model.pth"
    torch.save({"a": np.array([1, None], dtype=object)}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeCheckpointError, match=r"model\.pth was not loaded.*numpy"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", b"hello", b"\x80\x05\x95" + b"\xff" * 20, b"X\xff\xff\xff\x7f", b"\x8a\xff"]
)
def test_files_of_something_else(tmp_path, content):
    for name in ("a.pth", "a.pkl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=r"not a readable checkpoint"):
            load(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
def test_nesting_that_is_too_deep(tmp_path, name):
    (tmp_path / name).write_bytes(b"]" * 5000 + b"a" * 4999 + b".")
    with pytest.raises(ValueError, match=r"not a readable checkpoint"):
        load(tmp_path / name)


def test_deep_nesting_in_a_torch_file(tmp_path):
    deep = b"]" * 5000 + b"a" * 4999 + b"."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("a/data.pkl", deep)
        archive.writestr("a/version", "3")
    with pytest.raises(ValueError, match=r"not a readable checkpoint"):
        load(tmp_path / "a.pth")


def test_torchscript_is_told_apart(tmp_path):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("model/constants.pkl", pickle.dumps((), protocol=2))
        archive.writestr("model/version", "3\n")
        archive.writestr("model/byteorder", "little")
    with pytest.raises(ValueError, match="TorchScript"):
        load(path)


def program(*parts):
    """A pickle written by hand."""
    return b"".join(part if isinstance(part, bytes) else part.encode() for part in parts) + b"."


DTYPE = "cnumpy\ndtype\n(Vf4\nI00\nI01\ntR"
ARRAY = "cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"

FORGED = {
    # attributes of classes and functions that are on the list
    "patched class": program("ccollections\nOrderedDict\n(N(dVupdate\nVx\nstb"),
    "patched function": program("ctorch._utils\n_rebuild_tensor_v2\n(dVx\nVy\nsb"),
    # names that lead out of what is listed
    "dotted name": pickle.dumps(Calls(OrderedDict.fromkeys, ["a"]), protocol=4),
    "other codec": program("c_codecs\nencode\n(Vabc\nVrot13\ntR"),
    "extension": program(b"\x82\x01"),
    "persistent": program("Pwhatever\n"),
    # NumPy
    "object dtype": program("cnumpy\ndtype\n(VO8\nI00\nI01\ntR"),
    "record dtype": program("cnumpy\ndtype\n((lp0\n(Va\nVO\nta" + "tR"),
    "void dtype": program("cnumpy\ndtype\n(VV8\nI00\nI01\ntR"),
    "dtype with forged fields": program(DTYPE, "(I3\nV<\nN(Va\nt(dI4\nI4\nI63\ntb"),
    "array of pickled objects": program(ARRAY, "(I1\n(I1\nt", DTYPE, "I00\n(lI1\natb"),
    "array without a dtype": program(ARRAY, "(I1\n(I1\ntVf4\nI00\nVabcd\ntb"),
    "array of another class": program("cnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n(I0\ntVb\ntR"),
    "object array": pickle.dumps(np.array([CustomState()], dtype=object)),
    "object array of numbers": pickle.dumps(np.array([1, None], dtype=object)),
    "structured array": pickle.dumps(np.zeros(1, dtype=[("a", "f4")])),
    "ufunc": pickle.dumps(np.add),
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_state(tmp_path, name):
    path = tmp_path / "model.pkl"
    path.write_bytes(FORGED[name])
    with pytest.raises((UnsafeCheckpointError, ValueError), match=r"model\.pkl"):
        load(path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "x")


@pytest.mark.parametrize("name", [key for key in FORGED if key not in ("extension", "persistent")])
def test_forged_state_is_refused_and_not_just_broken(name):
    with pytest.raises(UnsafeCheckpointError):
        read_pickle(io.BytesIO(FORGED[name]))


def test_a_storage_that_hides_a_pickle():
    inner = io.BytesIO()
    torch.save(Calls(os.getcwd), inner)
    outer = pickle.dumps(Calls(torch.storage._load_from_bytes, inner.getvalue()))
    with pytest.raises(pickle.UnpicklingError, match="getcwd"):
        read_pickle(io.BytesIO(outer))


PLAIN = [
    None,
    True,
    3,
    2**70,
    1.5,
    1 + 2j,
    "text",
    b"bytes",
    bytearray(b"more"),
    (1, (2,)),
    [1, [2]],
    {"a": {"b": 1}},
    {1, 2},
    frozenset({1}),
    OrderedDict(a=1),
    Counter("aab"),
    defaultdict(int, a=1),
    range(3),
    slice(1, 2),
    torch.float32,
    torch.Size([1, 2]),
    np.float32(1.5),
    np.int64(-3),
    np.bool_(True),
    np.str_("größe"),
    np.dtype("float32"),
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_passes(value, protocol):
    loaded = read_pickle(io.BytesIO(pickle.dumps({"value": value}, protocol=protocol)))["value"]
    assert loaded == value
    assert type(loaded) is type(value)


ARRAYS = [
    np.zeros((0, 4), np.float32),
    np.array(3, np.int64),
    np.arange(6, dtype=np.uint8).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">f4"),
    np.array([True, False]),
    np.array([1 + 1j]),
    np.array([1.5], np.float16),
    np.array(["a", "bcd"]),
    np.array([b"a", b"bc"]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_pass(array, protocol):
    loaded = read_pickle(io.BytesIO(pickle.dumps([array, (array,)], protocol=protocol)))
    for copy in (loaded[0], loaded[1][0]):
        np.testing.assert_array_equal(copy, array)
        assert type(copy) is np.ndarray
        assert copy.dtype == array.dtype.newbyteorder("=")
        assert copy.flags.writeable


def test_arrays_of_python_2_pass():
    # what cPickle of Python 2 writes: old module names and byte strings
    text = (
        "(dp1\nS'blobs'\np2\n(dp3\nS'conv1_w'\np4\ncnumpy.core.multiarray\n_reconstruct\np5\n(cnumpy\nndarray\np6\n"
        "(I0\ntp7\nS'b'\np8\ntp9\nRp10\n(I1\n(I2\ntp11\ncnumpy\ndtype\np12\n(S'f4'\np13\nI0\nI1\ntp14\nRp15\n"
        "(I3\nS'<'\np16\nNNNI-1\nI-1\nI0\ntp17\nbI00\nS'\\x00\\x00\\x80?\\x00\\x00\\x00@'\np18\ntp19\nbss."
    )
    loaded = read_pickle(io.BytesIO(text.encode("latin1")))
    np.testing.assert_array_equal(loaded["blobs"]["conv1_w"], [1.0, 2.0])


def test_tensors_and_parameters_pass():
    shared = torch.arange(6.0)
    content = {
        "a": shared[:3],
        "b": shared[3:].view(1, 3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "state": torch.nn.BatchNorm1d(2).state_dict(),
    }
    loaded = read_pickle(io.BytesIO(pickle.dumps(content)))
    for key in ("a", "b", "half", "parameter"):
        assert torch.equal(loaded[key], content[key])
        assert type(loaded[key]) is type(content[key])
    assert loaded["state"]._metadata == content["state"]._metadata


def test_containers_that_hold_themselves_end():
    loop = {"array": np.ones(1)}
    loop["self"] = [loop]
    loaded = read_pickle(io.BytesIO(pickle.dumps(loop)))
    assert loaded["self"][0] is loaded
    np.testing.assert_array_equal(loaded["array"], [1.0])


@pytest.mark.parametrize("name", ["model.pth", "model.pkl"])
def test_the_program_may_declare_its_own_types_safe(tmp_path, name):
    path = tmp_path / name
    content = {"model": torch.nn.Linear(1, 1).state_dict(), "extra": CustomState()}
    if name == "model.pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(UnsafeCheckpointError, match=r"CustomState.*add_safe_globals"):
        load(path)
    with torch.serialization.safe_globals([CustomState]):
        assert load(path)["extra"].x == 1


@pytest.mark.parametrize("name", ["model.pth", "old.pth", "model.pkl"])
@pytest.mark.parametrize("node", [CfgNode, yacs.config.CfgNode])
def test_config_nodes_are_read_as_dictionaries(tmp_path, name, node):
    content = {"model": torch.nn.Linear(1, 1).state_dict(), "cfg": node({"A": {"B": [1, (2, "x")]}, "C": {}})}
    content["cfg"].freeze()
    if name == "model.pkl":
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=name != "old.pth")
    found = load(tmp_path / name)["cfg"]
    assert found == {"A": {"B": [1, (2, "x")]}, "C": {}} and type(found) is type(found["A"]) is OrderedDict


@pytest.mark.parametrize("key", ["model_ema", "teacher"])
def test_weights_under_another_key_are_pointed_at(tmp_path, monkeypatch, key):
    torch.save({"epoch": 3, key: torch.nn.Linear(1, 1).state_dict(), "optimizer": {}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=rf"There are weights under \['{key}'\]") as e:
        load(tmp_path / "model.pth")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r'python -c "(.*)"', str(e.value))[1], {})
    assert load(tmp_path / "weights.pth") == {}
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"The keys are \['epoch', 'optimizer'\]\.$"):
        load(tmp_path / "model.pth")


def test_declarations_of_the_program_survive_a_load(tmp_path):
    torch.save({"weight": torch.ones(1, 1), "bias": torch.ones(1)}, tmp_path / "a.pth")
    torch.save({"model": torch.nn.Linear(1, 1).state_dict(), "x": np.float64(3)}, tmp_path / "b.pth")
    core = np._core if hasattr(np, "_core") else np.core  # _core: NumPy 1.26 and later
    declared = [core.multiarray.scalar, np.dtype, (CustomState, "somewhere.Else")]
    with torch.serialization.safe_globals(declared):
        before = set(torch.serialization.get_safe_globals())
        load(tmp_path / "a.pth")
        assert load(tmp_path / "b.pth")["x"] == 3
        assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_one_flipped_bit_of_weights_is_noticed(tmp_path, name):
    model = torch.nn.Linear(300, 200)
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.file_format = name[2:]
    checkpointer.save("a")
    path = tmp_path / name
    DetectionCheckpointer(torch.nn.Linear(300, 200)).load(str(path))
    data = path.read_bytes()
    place = data.index(model.weight.detach().numpy().tobytes()) + 100_000
    path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    with pytest.raises(ValueError, match=rf"{name} .*not a readable checkpoint: the check sum .*is wrong"):
        DetectionCheckpointer(torch.nn.Linear(300, 200)).load(str(path))


def test_archives_without_check_sums_are_read(tmp_path):
    path = str(tmp_path / "a.pth")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": torch.nn.Linear(2, 1).state_dict()}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    DetectionCheckpointer(torch.nn.Linear(2, 1)).load(path)


def test_tuples_without_end_inside_an_archive(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}(" + b"K\x01" + b"2\x86" * 40 + b"K\x01u.")
        archive.writestr("a/version", "3\n")
    with pytest.raises(ValueError, match=r"a\.pth .*repeat each other without end"):
        DetectionCheckpointer(torch.nn.Linear(2, 1)).load(str(path))


@pytest.mark.parametrize(
    "content", [{"model": {"w": [1]}}, {"state_dict": {"w": {}}}, {"model": {3: torch.ones(1)}}, {"w": "x"}]
)
def test_something_else_where_weights_should_be(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth.*not a"):
        DetectionCheckpointer(torch.nn.Linear(2, 1)).load(str(tmp_path / "a.pth"))
