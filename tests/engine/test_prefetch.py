import numpy as np
import pytest
import torch
from torch import nn

from detectron2.engine import SimpleTrainer, train_loop
from detectron2.engine.prefetch import Prefetcher, batch_to_device
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from tests.waits import Waits

CPU = torch.device("cpu")


def sample(n=2, height=5, width=7):
    boxes = Boxes(torch.arange(4.0 * n).view(n, 4))
    instances = Instances((height, width), gt_boxes=boxes, gt_classes=torch.arange(n))
    instances.gt_masks = BitMasks(torch.rand(n, height, width) > 0.5)
    instances.gt_keypoints = Keypoints(torch.rand(n, 3, 3))
    instances.gt_polygons = PolygonMasks([[np.array([0.0, 0, 4, 0, 4, 4])]] * n)
    instances.gt_names = ["a"] * n
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).permute(2, 0, 1)
    return {"image": image, "instances": instances, "file_name": "x.jpg", "empty": torch.zeros(0, 4), "score": 0.5}


def test_a_batch_without_tensors_stays():
    for batch in ([], {}, [{"file_name": "x.jpg"}]):
        assert batch_to_device(batch, CPU) == batch


def test_everything_arrives_as_it_was():
    batch = [sample(), sample(0), sample(3)]
    moved = batch_to_device(batch, CPU)
    for new, old in zip(moved, batch, strict=True):
        assert new.keys() == old.keys() and new["file_name"] == "x.jpg" and new["score"] == 0.5
        assert torch.equal(new["image"], old["image"]) and new["image"].is_contiguous()
        assert torch.equal(new["empty"], old["empty"]) and new["empty"].shape == (0, 4)
        some, others = new["instances"], old["instances"]
        assert some is not others and some.image_size == others.image_size
        assert some.get_fields().keys() == others.get_fields().keys()
        for name in ("gt_boxes", "gt_masks", "gt_keypoints"):
            assert type(some.get(name)) is type(others.get(name))
            assert torch.equal(some.get(name).tensor, others.get(name).tensor)
        assert torch.equal(some.gt_classes, others.gt_classes)
        assert some.gt_polygons is others.gt_polygons and some.gt_names == others.gt_names
    memory = {t.untyped_storage().data_ptr() for t in (moved[0]["image"], moved[2]["instances"].gt_boxes.tensor)}
    assert len(memory) == 1  # one copy for all


def test_a_tensor_of_two_places_is_copied_once():
    shared = torch.rand(3)
    first, second = batch_to_device([shared, (shared,)], CPU)
    assert first.data_ptr() == second[0].data_ptr() != shared.data_ptr()
    parameter = nn.Parameter(torch.ones(2))
    assert batch_to_device([parameter], CPU)[0] is parameter


def test_nothing_waits_for_the_copy():
    with Waits() as waits:
        batch = [{"image": torch.zeros(3, 4, 5)}]
        batch_to_device(batch, CPU)
    assert waits.found == []


def test_batches_come_in_order_and_only_one_is_fetched_ahead():
    read = []

    def batches():
        for i in range(3):
            read.append(i)
            yield torch.tensor(i)

    prefetcher = Prefetcher(batches(), CPU, lambda: len(read))
    assert read == []
    assert next(prefetcher) == 0 and prefetcher.loader_state is None
    prefetcher.fetch_ahead()
    prefetcher.fetch_ahead()
    assert read == [0, 1] and prefetcher.loader_state == 1
    assert next(prefetcher) == 1 and prefetcher.loader_state is None
    assert next(prefetcher) == 2
    prefetcher.fetch_ahead()
    with pytest.raises(StopIteration):
        next(prefetcher)


def test_an_error_is_raised_when_its_batch_is_due():
    def batches():
        yield torch.tensor(0)
        raise RuntimeError("bad image")

    prefetcher = Prefetcher(batches(), CPU)
    assert next(prefetcher) == 0
    prefetcher.fetch_ahead()
    with pytest.raises(RuntimeError, match="bad image"):
        next(prefetcher)


class Counting:
    """A loader that knows how far it got."""

    def __init__(self):
        self.num_batches = 0

    def __iter__(self):
        while True:
            self.num_batches += 1
            yield torch.full((2, 3), float(self.num_batches))

    def state_dict(self):
        return {"num_batches": self.num_batches}

    def load_state_dict(self, state):
        self.num_batches = state["num_batches"]


class Recorder(nn.Linear):
    def __init__(self):
        super().__init__(3, 1)
        self.seen = []

    def forward(self, x):
        self.seen.append(x[0, 0].item())
        return {"loss": super().forward(x).square().mean()}


def trainer():
    model = Recorder()
    loop = SimpleTrainer(model, Counting(), torch.optim.SGD(model.parameters(), lr=0.001))
    loop.prefetch = True
    return loop


def test_a_checkpoint_goes_on_with_the_batch_that_was_fetched_ahead(monkeypatch):
    monkeypatch.setattr(train_loop, "_prefetches_to", lambda device: True)
    first = trainer()
    first.train(0, 3)
    assert first.data_loader.num_batches == 4  # one is on its way
    state = first.state_dict()
    assert state["data_loader"] == {"num_batches": 3}
    second = trainer()
    second.load_state_dict(state)
    second.train(3, 5)
    assert first.model.seen + second.model.seen == [1, 2, 3, 4, 5]


def test_on_the_cpu_nothing_is_fetched_ahead():
    loop = trainer()
    loop.train(0, 3)
    assert loop.data_loader.num_batches == 3 and loop.state_dict()["data_loader"] == {"num_batches": 3}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_gpu():
    device = torch.device("cuda", torch.cuda.current_device())
    batches = [[sample(), sample(5, 800, 1333)] for _ in range(4)]
    prefetcher = Prefetcher(iter(batches), device)
    for expected in batches:
        for new, old in zip(next(prefetcher), expected, strict=True):
            assert new["image"].device == device == new["instances"].gt_masks.device
            assert torch.equal(new["image"].cpu(), old["image"])
            assert torch.equal(new["instances"].gt_masks.tensor.cpu(), old["instances"].gt_masks.tensor)
            assert new["instances"].gt_polygons is old["instances"].gt_polygons
        prefetcher.fetch_ahead()
