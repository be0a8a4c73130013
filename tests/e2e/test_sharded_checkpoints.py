"""Two processes save a model that is split over them in parts, also while training goes on; any number reads it."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from detectron2.checkpoint import DetectionCheckpointer, read_description
from detectron2.checkpoint.parts import is_parts_folder, read_parts
from detectron2.engine import ShardedCheckpointer, launch
from detectron2.inference.loading import load
from detectron2.utils import comm
from tests.e2e.conftest import skip_unless_cpus_can_shard
from tests.e2e.test_distributed import TinyViT, _register, _vit, _vit_step, _write_data
from tests.e2e.test_sharded_training import _train

LAYOUTS = {"full": "x.pth", "sharded": "x.sharded", "sharded_async": "x.sharded"}


def _whole(model, optimizer):
    """Return the weights and momenta of a model that may be split."""
    weights = {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in model.named_parameters()}
    buffers = [optimizer.state[p]["momentum_buffer"] for p in model.parameters() if p in optimizer.state]
    return {**weights, **{f"momentum {i}": getattr(b, "full_tensor", lambda b=b: b)() for i, b in enumerate(buffers)}}


def _keeper(folder, model, optimizer, layout):
    keeper = ShardedCheckpointer(model, str(folder / layout), optimizer=optimizer)
    keeper.layout = layout
    return keeper


def _save(folder):
    """Save after two steps in each layout, while the third goes on; the third once more from each checkpoint."""
    model, optimizer = _vit()
    for _ in range(2):
        _vit_step(model, optimizer)
    saved, keepers = _whole(model, optimizer), []
    for layout in LAYOUTS:
        keepers.append(_keeper(folder, model, optimizer, layout))
        keepers[-1].save("x", iteration=1)
    third = _vit_step(model, optimizer)
    for keeper in keepers:
        keeper.wait()
    found = {"saved": saved, "third": third, "again": {}}
    for layout in LAYOUTS:
        model, optimizer = _vit()
        rest = _keeper(folder, model, optimizer, layout).resume_or_load("")
        found["again"][layout] = [rest, _whole(model, optimizer), _vit_step(model, optimizer)]
    return found


def _fail(folder):
    """Save in a folder that only one process has."""
    model, optimizer = _vit()
    keeper = _keeper(folder / f"only{comm.get_rank()}", model, optimizer, "sharded_async")
    keeper.save("x")
    with pytest.raises(OSError, match="need an output folder on a file system that all machines see"):
        keeper.wait()
    return [os.listdir(keeper.save_dir) if os.path.isdir(keeper.save_dir) else [], keeper.has_checkpoint()]


def _two(folder):
    folder = Path(folder)
    torch.set_num_threads(1)
    found = {**_save(folder), "fail": _fail(folder)}
    _register(folder)
    options = ["TRAIN.SHARD_MODEL", True, "SOLVER.CHECKPOINTS_TO_KEEP", 1, "SOLVER.EMA_DECAY", 0.5]
    options += ["TEST.BEST_METRIC", "bbox/AP", "TEST.EVAL_PERIOD", 2, "SOLVER.MAX_ITER", 4]
    _train(folder / "whole", *options)
    options += ["SOLVER.CHECKPOINT_LAYOUT", "sharded_async"]
    _train(folder / "trained", *options)
    if comm.is_main_process():
        (folder / "resumed").mkdir()
        shutil.copytree(folder / "trained" / "model_0000003.sharded", folder / "resumed" / "model_0000003.sharded")
        (folder / "resumed" / "last_checkpoint").write_text("model_0000003.sharded")
        (folder / "resumed" / "model_0000001.sharded.tmp").mkdir()  # from a process that was killed
    comm.synchronize()
    found["start"] = _train(folder / "resumed", *options, "SOLVER.MAX_ITER", 5, seed=50).start_iter
    torch.save(found, folder / f"found_{comm.get_rank()}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return (folder, what each process found)."""
    skip_unless_cpus_can_shard()
    folder = tmp_path_factory.mktemp("parts")
    _write_data(folder)
    launch(_two, 2, args=(str(folder),))
    return folder, [torch.load(folder / f"found_{rank}.pt", weights_only=True) for rank in (0, 1)]


def _same(one, two):
    assert one.keys() == two.keys() and len(one) > 10
    for name, value in one.items():
        assert torch.equal(two[name], value), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_restores_every_bit(runs, layout):
    for found in runs[1]:
        rest, state, third = found["again"][layout]
        assert rest == {"iteration": 1} and third == found["third"]
        _same(found["saved"], state)


def test_both_processes_wrote_their_part(runs):
    for layout in ("sharded", "sharded_async"):
        folder = runs[0] / layout
        assert sorted(os.listdir(folder)) == ["last_checkpoint", "x.sharded"]
        sizes = {path.name: path.stat().st_size for path in (folder / "x.sharded").glob("*.distcp")}
        assert set(sizes) == {"__0_0.distcp", "__1_0.distcp"} and min(sizes.values()) > 0.5 * max(sizes.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_process_reads_it(runs, layout):
    model = TinyViT()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    keeper = _keeper(runs[0], model, optimizer, layout)
    assert keeper.resume_or_load("")["iteration"] == 1
    _same(runs[1][0]["saved"], _whole(model, optimizer))
    other = TinyViT()
    DetectionCheckpointer(other).load_for_inference(str(runs[0] / layout / LAYOUTS[layout]))
    _same(model.state_dict(), other.state_dict())


def test_a_folder_that_only_one_process_has(runs):
    assert [x["fail"] for x in runs[1]] == [[["x.sharded.tmp"], False], [[], False]]


def test_a_trainer_keeps_what_it_is_told(runs):
    names = sorted(p.name for p in (runs[0] / "trained").iterdir() if "model" in p.name or p.name == "last_checkpoint")
    kept = ["model_0000003.sharded", "model_final.sharded", "model_final_ema.sharded"]
    assert [n for n in names if "best" not in n] == ["last_checkpoint", *kept]
    assert (runs[0] / "trained" / "last_checkpoint").read_text() == "model_final.sharded"
    assert [x["start"] for x in runs[1]] == [4, 4]
    assert not list((runs[0] / "resumed").glob("*.tmp"))


@pytest.mark.parametrize("name", ["model_final", "model_final_ema"])
def test_the_layout_changes_no_bit_of_the_training(runs, name):
    whole = torch.load(runs[0] / "whole" / f"{name}.pth", weights_only=True)
    parts = read_parts(str(runs[0] / "trained" / f"{name}.sharded"))
    _same(whole["model"], parts["model"])
    assert parts.keys() == whole.keys() and parts["iteration"] == 3
    if "trainer" in whole:
        one, two = (x["trainer"]["_trainer"]["optimizer"]["state"] for x in (whole, parts))
        assert all(torch.equal(two[i]["momentum_buffer"], x["momentum_buffer"]) for i, x in one.items())


def test_such_a_folder_predicts(runs):
    path = str(runs[0] / "trained" / "model_final.sharded")
    loaded = load(path, device="cpu")
    assert loaded.metadata.thing_classes == ["a", "b"]
    _same(read_parts(path)["model"], loaded.model.state_dict())
    description = read_description(path)
    assert description.iteration == 3 and description.metrics_iteration == 3


def _load(folder):
    torch.set_num_threads(1)
    model, optimizer = _vit()
    keeper = _keeper(Path(folder), model, optimizer, "sharded")
    keeper.resume_or_load("")
    state = _whole(model, optimizer)
    sizes = comm.all_gather(sum(p._local_tensor.numel() for p in model.parameters()))
    if comm.is_main_process():
        torch.save(state, f"{folder}/of_three.pt")
        Path(folder, "sizes.json").write_text(json.dumps(sizes))


@pytest.mark.slow
def test_three_processes_read_what_two_saved(runs):
    launch(_load, 3, args=(str(runs[0]),))
    _same(runs[1][0]["saved"], torch.load(runs[0] / "of_three.pt", weights_only=True))
    sizes = json.loads((runs[0] / "sizes.json").read_text())
    assert len(sizes) == 3 and max(sizes) < 0.5 * sum(sizes)


def test_a_model_that_is_not_split_is_one_file(tmp_path):
    model = torch.nn.Linear(1, 1)
    for layout in ("sharded", "sharded_async"):
        keeper = _keeper(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1), layout)
        before = model.weight.item()
        keeper.save("x", iteration=3)
        with torch.no_grad():
            model.weight += 1
        keeper.wait()
        found = torch.load(tmp_path / layout / "x.pth", weights_only=True)
        assert found["model"]["weight"].item() == before and found["iteration"] == 3
        assert keeper.get_checkpoint_file().endswith("x.pth") and not is_parts_folder(keeper.get_checkpoint_file())
    keeper.layout = "half"
    with pytest.raises(ValueError, match=r"one of .* not 'half'"):
        keeper.save("x")
