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
"""Strengths of an adaptation."""

import pyarrow
import pytest
import torch
from peft import get_peft_model
from peft.tuners.lora import LoraLayer

from fusionmatch.evaluation.forgetting import Point, interpolated, kept, recommend, sweep
from fusionmatch.evaluation.queries import QueryResults
from fusionmatch.loading import base_state_dict
from fusionmatch.training import lora_config

from ..core.tiny import tiny_inputs, tiny_model


def embeds(model):
    with torch.no_grad():
        return model(**tiny_inputs()).text_embeds


@pytest.fixture
def adapted():
    """An adapter with LoRA and modules that it carries whole, none of which are the base's any more."""
    model = tiny_model()
    model.config.untrained_modules = ["vision_fusion"]
    peft_model = get_peft_model(model, lora_config(model, r=2, init_lora_weights=False)).eval()
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    return peft_model


def test_from_the_base_to_the_adapter(adapted):
    expected = {1.0: embeds(adapted)}
    with adapted.disable_adapter():
        expected[0.0] = embeds(adapted)
    base = {name: tensor.clone() for name, tensor in base_state_dict(adapted).items()}

    def at_half(scale, share):
        """Half of a LoRA's change is its change at half of its scaling."""
        for module in adapted.modules():
            if isinstance(module, LoraLayer):
                module.set_scale("default", scale)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "modules_to_save" in name:
                    own = base[name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")]
                    parameter.copy_(own + share * (parameter - own))

    at_half(0.5, 0.5)
    expected[0.5] = embeds(adapted)
    at_half(1.0, 2.0)
    merged = adapted.merge_and_unload()
    for scale, model in interpolated(merged, base, [0.0, 0.5, 1.0]):
        assert torch.allclose(embeds(model), expected[scale], atol=1e-5), scale
    assert torch.allclose(embeds(merged), expected[1.0], atol=1e-5)
    assert (expected[0.0] - expected[1.0]).abs().max() > 0.01


def test_another_base_is_refused(adapted):
    with pytest.raises(ValueError, match="other weights"):
        next(interpolated(adapted.merge_and_unload(), tiny_model(vision_feature_levels=[-1]).state_dict(), [0.5]))


def test_a_sweep_measures_each_strength():
    model = torch.nn.Linear(1, 1, bias=False)
    base = {"weight": torch.tensor([[1.0]])}
    model.load_state_dict({"weight": torch.tensor([[3.0]])})

    def run(hits):
        """Eight queries each way, so many of which find their product first, the others at place 20."""
        ranks = [[1 if i < hits else 20 for i in range(8)]] * 2
        names = [str(i) for i in range(8)]
        columns = {"direction": ["i2t"] * 8 + ["t2i"] * 8, "query": names * 2, "product": names * 2}
        return QueryResults(pyarrow.table(columns | {"rank": ranks[0] + ranks[1]}))

    def rsum(hits):
        return 6 * 100 * hits / 8

    points = sweep(model, base, lambda m: run(m.weight.item()), lambda m: run(8 - m.weight.item()), [0.5, 0.0, 1.0])
    assert [point.scale for point in points] == [0.5, 0.0, 1.0]
    for point, hits in zip(points, (2, 1, 3), strict=True):
        assert point.catalogue == pytest.approx(rsum(hits)) and point.general == pytest.approx(rsum(8 - hits))
        for change in (point.gain, point.forgotten):
            assert change.value == pytest.approx(rsum(hits - 1))
            assert (change.low < change.value < change.high) == (hits > 1)
    (alone,) = sweep(model, base, lambda m: run(1), lambda m: run(1), [1.0])
    assert alone.gain is None and alone.forgotten is None


def test_the_recommended_strength_keeps_the_gain_and_forgets_least():
    points = [
        Point(0.0, 100, 300),
        Point(0.25, 150, 310),
        Point(0.5, 196, 290),
        Point(0.75, 201, 280),
        Point(1, 200, 250),
    ]
    assert recommend(points).scale == 0.5
    assert recommend(points, keep=0.99).scale == 0.75
    assert recommend(points, keep=0.3).scale == 0.25
    assert recommend([Point(0.0, 100, 300), Point(1.0, 90, 200)]).scale == 0
    with pytest.raises(ValueError, match="scale 0"):
        recommend(points[1:])


def test_less_of_the_gain_or_none_where_more_forgets_too_much():
    points = [Point(0.0, 100, 300), Point(0.25, 120, 290), Point(0.5, 150, 270), Point(1.0, 200, 150)]
    assert recommend(points, most_forgotten=0.1).scale == 0.5  # half of the gain, the most of those that may be
    assert [kept(points, point) for point in points] == [0, 0.2, 0.5, 1]
    assert recommend(points, most_forgotten=0.01) is None
    assert recommend(points, most_forgotten=0.5).scale == 1
    assert recommend(points, keep=0.5, most_forgotten=0.1).scale == 0.5
    with pytest.raises(ValueError, match="most_forgotten"):
        recommend(points, most_forgotten=10)
