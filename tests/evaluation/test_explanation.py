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
import pytest
import torch
from PIL import Image

from fusionmatch.evaluation.explanation import explain
from fusionmatch.evaluation.explanation_figure import draw_explanations
from fusionmatch.evaluation.inputs import image_inputs, text_inputs

from ..core.tiny import perturb, tiny_concepts, tiny_model, tiny_pictures, tiny_processor


TEXT = "a red mug the lamp"


def read(model, **kwargs):
    return explain(model, tiny_processor(), tiny_pictures(1)[0], TEXT, **kwargs)


def outputs_of(model, **kwargs):
    processor = tiny_processor()
    inputs = text_inputs(processor, [TEXT], model.config.text_config)
    with torch.no_grad():
        return model(pixel_values=image_inputs(processor, tiny_pictures(1)), **inputs, **kwargs)


def test_behind_a_closed_gate_nothing_of_the_branch_decides():
    found = read(tiny_model(gate_init_value=0.0))
    assert found.cosine == pytest.approx(found.plain_cosine, abs=1e-6)
    for side in (found.image, found.text):
        assert [*side.levels.values(), *side.heads] == pytest.approx([0] * 6, abs=1e-6)


def test_the_cosines_are_the_model_s_and_the_model_is_left_as_it_was():
    model = tiny_model()
    perturb(model)
    before = outputs_of(model)
    found = read(model)
    assert found.cosine == pytest.approx((before.text_embeds @ before.image_embeds.t()).item(), abs=1e-5)
    after = outputs_of(model)
    assert torch.equal(before.text_embeds, after.text_embeds)
    assert max(map(abs, found.image.heads)) > 1e-5


def test_a_level_left_out_by_hand():
    """With a single level and no blocks, leaving that level out leaves the projection's bias."""
    settings = {"vision_feature_levels": [-1], "text_feature_levels": [-1], "num_hidden_layers": 0}
    model = tiny_model(**settings, fusion_mode="weighted_sum")
    perturb(model)
    found = read(model)
    outputs = outputs_of(model)
    base = outputs.vision_model_output.base_embeds
    bias = model.vision_fusion.residual.project(torch.zeros(1, model.config.hidden_size))
    without = base + model.vision_fusion.residual.gate.tanh() * base.norm() * bias
    wanted = found.cosine - torch.cosine_similarity(without, outputs.text_embeds).item()
    assert found.image.levels[-1] == pytest.approx(wanted, abs=1e-5)


def test_without_blocks_heads_look_where_the_pooling_does():
    model = tiny_model(num_hidden_layers=0)
    perturb(model)
    side = read(model).image
    output = outputs_of(model, output_attentions=True).vision_model_output
    shares = output.fusion_weights[0]
    wanted = torch.cat([s * w[0] for s, w in zip(shares, output.level_attentions, strict=True)], dim=1)
    torch.testing.assert_close(side.attention, wanted, atol=1e-5, rtol=0)
    assert list(side.level_shares.values()) == pytest.approx(shares.tolist(), abs=1e-6)


@pytest.mark.parametrize(("vision", "grid"), [("vit", (4, 4)), ("resnet", (4, 4)), ("swin", (8, 8))])
def test_attention_lies_on_the_picture(vision, grid):
    model = tiny_model(vision)
    perturb(model)
    found = read(model)
    torch.testing.assert_close(found.image.attention.sum(dim=1), torch.ones(4), atol=1e-5, rtol=0)
    assert found.image_maps[-1].shape == (4, *grid)
    assert all((places >= 0).all() for places in found.image_maps.values())
    # What is not on the grids went to class tokens.
    total = sum(places.sum().item() for places in found.image_maps.values()) / 4
    assert (0.3 if vision == "vit" else 0.999) < total <= 1.001


def test_words_are_those_of_the_text():
    found = read(tiny_model())
    assert [word for word, _ in found.words] == TEXT.split()
    assert sum(weight for _, weight in found.words) == pytest.approx(1)


def test_concepts_are_those_of_the_model():
    model = tiny_concepts(tiny_model())
    perturb(model)
    found = read(model, top_k=2)
    inputs = {"pixel_values": image_inputs(tiny_processor(), tiny_pictures(1))}
    assert dict(found.image.concepts) == pytest.approx(dict(model.concepts(top_k=2, **inputs)["image"][0]), abs=1e-5)
    assert len(found.text.concepts) == 2
    assert read(tiny_model()).text.concepts == []


def test_a_concept_left_out_by_hand():
    """A concept whose vector is 0 is worth nothing; all of them are what remains when the consensus is its bias."""
    model = tiny_concepts(tiny_model())
    perturb(model)
    found = read(model)
    assert set(found.image.without_concept) == {word for word, _ in found.image.concepts}
    assert any(abs(value) > 1e-6 for value in found.image.without_concept.values())
    with torch.no_grad():
        bank = model.concept_bank()
    model.concept_bank.forward = lambda: torch.zeros_like(bank)
    nothing = read(model)
    assert nothing.image.consensus == pytest.approx(0, abs=1e-6)
    assert max(map(abs, nothing.text.without_concept.values())) < 1e-6
    assert read(tiny_model()).image.consensus == 0


def test_a_model_without_branch_is_refused():
    with pytest.raises(ValueError, match="no fusion branch"):
        read(tiny_model(vision_feature_levels=[], text_feature_levels=[]))


def test_the_figure_is_written(tmp_path):
    model = tiny_concepts(tiny_model())
    picture = tiny_pictures(1)[0]
    examples = [("hit", picture, TEXT, read(model)), ("miss", picture, TEXT, read(tiny_model()))]
    with Image.open(draw_explanations(tmp_path / "figure.png", examples, "two")) as figure:
        assert min(figure.size) > 400
        assert len(figure.convert("RGB").getcolors(1 << 24)) > 50
