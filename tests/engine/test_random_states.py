"""The states of the global random number generators."""

import random

import numpy as np
import torch

from detectron2.engine.random_states import random_states, random_states_kept, set_random_states, torch_states


def draw():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_restored():
    states = random_states()
    first = draw()
    set_random_states(states)
    assert draw() == first


def test_torch_alone():
    states = torch_states()
    first = draw()
    set_random_states(states)
    second = draw()
    assert second[2] == first[2] and second[0] != first[0]


def test_kept():
    states = random_states()
    first = draw()
    set_random_states(states)
    with random_states_kept():
        draw()
    assert draw() == first
