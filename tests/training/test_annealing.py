# Copyright 2026 The FusionMatch team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The learning rate: closed forms of warm-up, annealing, floor and restarts."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from transformers import get_cosine_schedule_with_warmup

from fusionmatch.training.annealing import annealing_factor


def test_closed_form():
    share = [annealing_factor(step, total_steps=14, warmup_steps=4, floor=0.2) for step in range(15)]
    assert share[:4] == approx([0.2, 0.4, 0.6, 0.8])
    assert share[4] == 1
    assert share[9] == approx(0.6)  # half-way: the mean of peak and floor
    assert share[14] == approx(0.2)
    for step in range(4, 15):
        assert share[step] == approx(0.2 + 0.8 * (1 + math.cos(math.pi * (step - 4) / 10)) / 2)


def test_restarts():
    share = [annealing_factor(step, total_steps=30, cycles=3) for step in range(30)]
    assert share[0] == share[10] == share[20] == 1
    assert share[:10] == approx(share[10:20])
    assert share[5] == approx(0.5)


def test_without_floor_it_is_transformers_cosine():
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = get_cosine_schedule_with_warmup(optimizer, num_warmup_steps=0, num_training_steps=40)
    for step in range(40):
        assert annealing_factor(step, 40) == approx(peer.get_last_lr()[0])
        optimizer.step()
        peer.step()


@given(
    total=st.integers(1, 500),
    warmup=st.floats(0, 1),
    cycles=st.integers(1, 6),
    floor=st.floats(0, 0.99),
)
@settings(max_examples=150, deadline=None)
def test_always_between_floor_and_peak(total, warmup, cycles, floor):
    warmup_steps = int(warmup * total)
    if total - warmup_steps < cycles:
        with pytest.raises(ValueError, match="Train longer"):
            annealing_factor(0, total, warmup_steps, floor, cycles)
        return
    shares = [annealing_factor(step, total, warmup_steps, floor, cycles) for step in range(total)]
    assert all(0 < share <= 1 or floor == 0 for share in shares)
    assert all(share >= floor - 1e-12 for share in shares[warmup_steps:])
    assert shares[:warmup_steps] == sorted(shares[:warmup_steps])
    assert shares[warmup_steps] == 1


@pytest.mark.parametrize(
    "settings",
    [{"floor": 1.0}, {"floor": -0.1}, {"cycles": 0}, {"warmup_steps": 11}, {"warmup_steps": -1}],
)
def test_values_outside_their_range(settings):
    with pytest.raises(ValueError):
        annealing_factor(0, 10, **settings)
