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
"""The model: what it computes, for every kind of tower, and what it must never change."""

import math

import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel, set_seed

from fusionmatch import FusionMatchModel
from fusionmatch.losses_fusionmatch import infonce_loss
from fusionmatch.towers_fusionmatch import has_optional_pooler, level_tokens

from .tiny import END, TEXT_TOWERS, VISION_TOWERS, perturb, tiny_inputs, tiny_model, tower_config


def natural_pooling(model_type: str) -> str:
    """A pooler that always comes with the tower is used; one that is an option is left out."""
    config = tower_config(model_type)
    if has_optional_pooler(config) or model_type == "distilbert":
        return "mean"
    return "pooler"


def matrix_model(vision: str, text: str) -> FusionMatchModel:
    return tiny_model(vision, text, vision_pooling=natural_pooling(vision), text_pooling=natural_pooling(text))


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**tiny_inputs(), return_loss=True).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


class TestDualEncoders:
    """At step 0 FusionMatch equals the aligned model that it was made from."""

    @pytest.fixture
    def clip(self):
        set_seed(0)
        vision, text = tower_config("clip_vision_model").to_dict(), tower_config("clip_text_model").to_dict()
        return CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)).eval()

    @pytest.fixture
    def siglip(self):
        set_seed(0)
        vision, text = tower_config("siglip_vision_model").to_dict(), tower_config("siglip_text_model").to_dict()
        return SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()

    @pytest.mark.parametrize("name", ["clip", "siglip"])
    def test_step_zero_equality(self, name, request, tmp_path):
        base = request.getfixturevalue(name)
        perturb(base)
        base.save_pretrained(tmp_path)
        model = FusionMatchModel.from_dual_encoder_pretrained(
            str(tmp_path), hidden_size=16, num_attention_heads=4, vision_feature_levels=[-2, -1]
        )
        inputs = tiny_inputs()
        with torch.no_grad():
            ours, theirs = model(**inputs), base(**inputs)
        # The branch is there, it has weight, and it has no say yet.
        assert ours.vision_model_output.fused_embeds.norm(dim=-1).allclose(torch.ones(3))
        for field in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
            difference = (ours[field] - theirs[field]).abs().max().item()
            assert difference <= 1e-6, f"{field}: {difference}"

    def test_scale_and_bias_are_taken_over(self, clip, siglip, tmp_path):
        with torch.no_grad():
            clip.logit_scale.fill_(3.21)
            siglip.logit_scale.fill_(4.75)  # exp(4.75) = 115.6, above CLIP's ceiling of 100
            siglip.logit_bias.fill_(-12.5)
        clip.save_pretrained(tmp_path / "clip")
        siglip.save_pretrained(tmp_path / "siglip")
        small = {"hidden_size": 16, "num_attention_heads": 4, "vision_feature_levels": [-1]}
        ours = FusionMatchModel.from_dual_encoder_pretrained(str(tmp_path / "clip"), **small).similarity
        assert ours.logit_scale.tolist() == pytest.approx([3.21])
        assert ours.logit_bias is None
        ours = FusionMatchModel.from_dual_encoder_pretrained(str(tmp_path / "siglip"), **small).similarity
        unit = torch.eye(2)
        expected = unit * math.exp(4.75) - 12.5
        assert torch.allclose(ours(unit, unit), expected, atol=1e-4)

    def test_model_without_two_towers_is_refused(self, tmp_path):
        tiny_model().text_model.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="`bert` model without two aligned towers"):
            FusionMatchModel.from_dual_encoder_pretrained(str(tmp_path))


@pytest.mark.parametrize("text", TEXT_TOWERS)
@pytest.mark.parametrize("vision", VISION_TOWERS)
class TestTowers:
    def test_forward_backward_save_load(self, vision, text, tmp_path):
        model = matrix_model(vision, text)
        perturb(model)
        for name, gradient in gradients(model).items():
            assert gradient.isfinite().all(), name
            assert gradient.abs().sum() > 0, name
        inputs = tiny_inputs()
        with torch.no_grad():
            outputs = model(**inputs)
        assert outputs.logits_per_image.shape == (3, 3)
        assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.t())
        assert outputs.image_embeds.norm(dim=-1).allclose(torch.ones(3))
        assert outputs.text_embeds.norm(dim=-1).allclose(torch.ones(3))

        model.save_pretrained(tmp_path)
        loaded, info = FusionMatchModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        with torch.no_grad():
            again = loaded(**inputs)
        assert torch.equal(outputs.image_embeds, again.image_embeds)
        assert torch.equal(outputs.text_embeds, again.text_embeds)
        assert torch.equal(outputs.logits_per_image, again.logits_per_image)


class TestFusion:
    @pytest.mark.parametrize("mode", ["weighted_sum", "gated", "concat"])
    def test_shares_sum_to_one(self, mode):
        model = tiny_model(fusion_mode=mode)
        perturb(model)
        outputs = model(**tiny_inputs())
        for output in (outputs.vision_model_output, outputs.text_model_output):
            assert output.fusion_weights.shape == (3, 2)
            assert (output.fusion_weights > 0).all()
            assert output.fusion_weights.sum(dim=-1).allclose(torch.ones(3))
        spread = outputs.vision_model_output.fusion_weights.std(dim=0).max().item()
        # One weight a level for all pictures, or weights for each picture of its own.
        assert spread < 1e-7 if mode == "weighted_sum" else spread > 1e-5

    def test_embedding_is_base_plus_gated_branch(self):
        model = tiny_model(gate_init_value=0.5)
        output = model.get_image_features(tiny_inputs()["pixel_values"])
        expected = output.base_embeds + (
            math.tanh(0.5) * output.base_embeds.norm(dim=-1, keepdim=True) * output.fused_embeds
        )
        assert torch.allclose(output.pooler_output, expected, atol=1e-6)

    def test_closed_gate_is_the_plain_path(self):
        model = tiny_model(gate_init_value=0.0)
        inputs = tiny_inputs()
        before = model(**inputs)
        assert torch.equal(before.vision_model_output.pooler_output, before.vision_model_output.base_embeds)
        perturb(model.vision_fusion.layers)
        perturb(model.text_fusion.residual.projection)
        after = model(**inputs)
        assert torch.equal(before.image_embeds, after.image_embeds)
        assert torch.equal(before.text_embeds, after.text_embeds)

    def test_closed_gate_can_open(self):
        # At g = 0 the branch itself gets no gradient, but the gate does: otherwise nothing would ever move.
        found = gradients(tiny_model(gate_init_value=0.0))
        assert found["vision_fusion.residual.gate"].abs().item() > 0
        assert found["text_fusion.residual.gate"].abs().item() > 0

    def test_features_are_dropped_for_all_tokens_of_an_item(self):
        # Dropped token by token, a channel would be back in the mean over the tokens.
        model = tiny_model(feature_dropout=0.5).train()
        seen = []
        model.vision_fusion.level_norms[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(**tiny_inputs())
        dropped = seen[0] == 0
        assert 0.3 < dropped.float().mean() < 0.7
        assert (dropped == dropped[:, :1]).all()
        assert not (dropped[0] == dropped[1]).all()
        model.eval()(**tiny_inputs())
        assert not (seen[1] == 0).any()

    def test_no_levels_no_branch(self):
        model = tiny_model(vision_feature_levels=[], text_feature_levels=[])
        assert not any("fusion" in name for name in model.state_dict())
        output = model(**tiny_inputs()).vision_model_output
        assert torch.equal(output.pooler_output, output.base_embeds)
        assert output.fused_embeds is None and output.fusion_weights is None

    def test_number_of_levels_may_differ_between_towers(self):
        model = tiny_model(vision_feature_levels=[0, 1, -1], text_feature_levels=[-1])
        outputs = model(**tiny_inputs())
        assert outputs.vision_model_output.fusion_weights.shape == (3, 3)
        assert outputs.text_model_output.fusion_weights.tolist() == [[1.0]] * 3


class TestLevelTokens:
    def test_grid_with_class_token(self):
        # Class token 100, then a 4 x 4 grid counting from 0; quadrants are averaged: (0 + 1 + 4 + 5) / 4 = 2.5.
        tokens = torch.tensor([100.0, *range(16)]).view(1, 17, 1)
        pooled = level_tokens(tokens, 5, (32, 32)).flatten().tolist()
        assert pooled == [100.0, 2.5, 4.5, 10.5, 12.5]

    def test_picture_that_is_not_square(self):
        # 2 rows of 4 columns: 0 1 2 3 / 4 5 6 7
        tokens = torch.arange(8.0).view(1, 8, 1)
        assert level_tokens(tokens, 2, (16, 32)).flatten().tolist() == [2.5, 4.5]
        # The same tokens as 4 rows of 2 columns: 0 1 / 2 3 / 4 5 / 6 7
        assert level_tokens(tokens, 2, (32, 16)).flatten().tolist() == [1.5, 5.5]

    def test_feature_map(self):
        features = torch.arange(16.0).view(1, 1, 4, 4)
        assert level_tokens(features, 4, (32, 32)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
        assert torch.equal(level_tokens(features, 16, (32, 32)), features.flatten(2).transpose(1, 2))

    @given(
        leading=st.integers(0, 5),
        rows=st.integers(1, 20),
        columns=st.integers(1, 20),
        max_tokens=st.integers(1, 80),
    )
    @settings(max_examples=200, deadline=None)
    def test_never_more_than_asked_and_constant_stays_constant(self, leading, rows, columns, max_tokens):
        tokens = torch.full((1, leading + rows * columns, 3), 7.0)
        pooled = level_tokens(tokens, max_tokens, (rows * 16, columns * 16))
        assert 1 <= pooled.shape[1] <= max_tokens
        assert torch.allclose(pooled, torch.full_like(pooled, 7.0))
        features = torch.full((1, 3, rows, columns), 7.0)
        assert 1 <= level_tokens(features, max_tokens, (rows * 16, columns * 16)).shape[1] <= max_tokens

    def test_model_uses_the_limit(self):
        model = tiny_model(max_level_tokens=5)
        features = model.encode_tower(pixel_values=tiny_inputs()["pixel_values"])
        assert [level.shape for level in features.levels] == [(3, 5, 32), (3, 5, 32)]

    def test_other_picture_size_than_the_tower_was_made_for(self):
        model = tiny_model(max_level_tokens=9)
        pictures = torch.rand(2, 3, 32, 64)
        features = model.encode_tower(pixel_values=pictures, interpolate_pos_encoding=True)
        # 4 x 8 patches in room for 8: 2 x 4, and the class token
        assert features.levels[0].shape == (2, 9, 32)
        assert model(pixel_values=pictures, interpolate_pos_encoding=True).image_embeds.isfinite().all()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("text", ["bert", "distilbert", "xlm-roberta", "clip_text_model"])
def test_padding_does_not_change_a_text(text, implementation):
    model = tiny_model("vit", text, text_pooling=natural_pooling(text))
    model.set_attn_implementation(implementation)
    ids = torch.tensor([[0, 11, 12, 13, END]])
    padded = torch.nn.functional.pad(ids, (0, 6), value=1)
    mask = torch.tensor([[1] * 5 + [0] * 6])
    with torch.no_grad():
        short = model(input_ids=ids).text_embeds
        long = model(input_ids=padded, attention_mask=mask).text_embeds
    assert (short - long).abs().max().item() <= 1e-5


class TestForward:
    def test_one_modality_alone(self):
        model, inputs = tiny_model(), tiny_inputs()
        pixel_values = inputs.pop("pixel_values")
        both = model(pixel_values=pixel_values, **inputs)
        text, image = model(**inputs), model(pixel_values=pixel_values)
        assert torch.equal(text.text_embeds, both.text_embeds)
        assert torch.equal(image.image_embeds, both.image_embeds)
        assert text.image_embeds is None and text.logits_per_text is None and image.text_model_output is None

    def test_pooler_that_the_tower_has_not(self):
        model = tiny_model("vit", "distilbert", text_pooling="pooler")
        with pytest.raises(ValueError, match=r'the text tower has no `pooler_output`\. Use "mean" or "cls"'):
            model(input_ids=tiny_inputs()["input_ids"])

    def test_first_token_pooling(self):
        model, ids = tiny_model(text_pooling="cls", vision_pooling="cls"), tiny_inputs()["input_ids"]
        expected = model.text_model(ids).last_hidden_state[:, 0]
        assert torch.equal(model.encode_tower(input_ids=ids).pooled, expected)

    def test_nothing_given(self):
        with pytest.raises(ValueError, match="got neither"):
            tiny_model()()

    def test_loss_needs_as_many_pictures_as_texts(self):
        model, inputs = tiny_model(), tiny_inputs()
        with pytest.raises(ValueError, match="got 2 pictures and 3 texts"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"][:2]}, return_loss=True)
        with pytest.raises(ValueError, match="got 3 pictures and 0 texts"):
            model(pixel_values=inputs["pixel_values"], return_loss=True)

    def test_numbers_of_pictures_and_texts_may_differ(self):
        inputs = tiny_inputs()
        outputs = tiny_model()(**{**inputs, "pixel_values": inputs["pixel_values"][:2]})
        assert outputs.logits_per_image.shape == (2, 3)

    def test_missing_mask_means_no_padding(self):
        model, ids = tiny_model(), tiny_inputs()["input_ids"]
        assert torch.equal(
            model(input_ids=ids).text_embeds, model(input_ids=ids, attention_mask=torch.ones_like(ids)).text_embeds
        )

    def test_product_ids_reach_the_loss(self):
        model, inputs = tiny_model(), tiny_inputs()
        outputs = model(**inputs, return_loss=True, product_ids=torch.tensor([7, 9, 7]))
        positives = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
        assert torch.equal(outputs.loss, infonce_loss(outputs.logits_per_text, positives))
        assert outputs.loss.item() != model(**inputs, return_loss=True).loss.item()

    def test_scale_has_a_ceiling(self):
        model = tiny_model(max_logit_scale=50.0)
        with torch.no_grad():
            model.similarity.logit_scale.fill_(10.0)
        outputs = model(**tiny_inputs())
        cosine = outputs.text_embeds @ outputs.image_embeds.t()
        assert torch.allclose(outputs.logits_per_text, 50 * cosine, atol=1e-4)

    @pytest.mark.parametrize("ceiling", [1.0, None])
    def test_ceiling_of_one_is_a_ceiling(self, ceiling):
        model = tiny_model(max_logit_scale=ceiling, logit_scale_init_value=math.log(7))
        outputs = model(**tiny_inputs())
        cosine = outputs.text_embeds @ outputs.image_embeds.t()
        assert torch.allclose(outputs.logits_per_text, (7 if ceiling is None else 1) * cosine, atol=1e-5)

    def test_only_the_hidden_states_asked_for(self):
        model, inputs = tiny_model(), tiny_inputs()
        assert model(**inputs).text_model_output.hidden_states is None
        everything = model(**inputs, output_hidden_states=True).text_model_output.hidden_states
        assert len(everything) == 3
        some = model(**inputs, output_hidden_states=[0, -1]).text_model_output.hidden_states
        assert torch.equal(some[0], everything[0]) and some[1] is None and torch.equal(some[2], everything[2])


class TestAttention:
    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_equals_torch_s_multi_head_attention(self, implementation):
        model = tiny_model()
        model.set_attn_implementation(implementation)
        perturb(model)
        ours = model.vision_fusion.layers[0].self_attn
        reference = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
        projections = (ours.q_proj, ours.k_proj, ours.v_proj)
        with torch.no_grad():
            reference.in_proj_weight.copy_(10 * torch.cat([projection.weight for projection in projections]))
            reference.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
            for projection in projections:
                projection.weight.mul_(10)  # so that attention is far from uniform
            reference.out_proj.load_state_dict(ours.out_proj.state_dict())
            tokens = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
            expected, weights = reference(tokens, tokens, tokens)
            found, _ = ours(tokens, None)
        assert weights.max().item() > 0.3
        assert torch.allclose(found, expected, atol=1e-5)

    def test_pooling_with_a_zero_query_is_the_mean(self):
        pooling = tiny_model().vision_fusion.level_poolings[0]
        tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
        with torch.no_grad():
            pooling.query.zero_()
            found, weights = pooling(tokens, mask)
            normed = pooling.layer_norm(tokens)
        assert torch.allclose(found[0], normed[0].mean(dim=0), atol=1e-6)
        assert torch.allclose(found[1], normed[1, :2].mean(dim=0), atol=1e-6)
        assert torch.allclose(weights[1, 0], torch.tensor([0.5, 0.5, 0, 0, 0]))

    def test_sdpa_equals_eager(self):
        model, inputs = tiny_model(), tiny_inputs()
        results = {}
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            assert model.text_fusion.config._attn_implementation == implementation
            with torch.no_grad():
                results[implementation] = model(**inputs)
        for field in ("image_embeds", "text_embeds", "logits_per_image"):
            assert (results["sdpa"][field] - results["eager"][field]).abs().max().item() <= 1e-5

    def test_weights_are_normalised_and_leave_padding_out(self):
        model = tiny_model(num_hidden_layers=2)
        model.set_attn_implementation("eager")
        outputs = model(**tiny_inputs(), output_attentions=True)
        image, text = outputs.vision_model_output, outputs.text_model_output
        assert [weights.shape for weights in image.fusion_attentions] == [(3, 4, 34, 34)] * 2
        assert [weights.shape for weights in image.level_attentions] == [(3, 4, 17)] * 2
        assert [weights.shape for weights in text.fusion_attentions] == [(3, 4, 14, 14)] * 2
        for weights in (
            *(*image.fusion_attentions, *image.level_attentions, *image.attentions),
            *(*text.fusion_attentions, *text.level_attentions, *text.attentions),
        ):
            assert weights.sum(dim=-1).allclose(torch.ones(()), atol=1e-5)
        # The last text's last two tokens are padding, in both levels.
        for weights in text.fusion_attentions:
            assert weights[-1][..., [5, 6, 12, 13]].abs().max().item() < 1e-7
        for weights in text.level_attentions:
            assert weights[-1][..., 5:].abs().max().item() < 1e-7

    def test_none_without_asking(self):
        model = tiny_model()
        model.set_attn_implementation("eager")
        output = model(**tiny_inputs()).text_model_output
        assert output.attentions is None and output.fusion_attentions is None and output.level_attentions is None

    def test_the_branch_gives_its_weights_under_sdpa_too(self):
        model, inputs = tiny_model(), tiny_inputs()
        found = {}
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            found[implementation] = model(**inputs, output_attentions=True)
        for name in ("vision_model_output", "text_model_output"):
            sdpa, eager = found["sdpa"][name], found["eager"][name]
            for field in ("fusion_attentions", "level_attentions"):
                assert torch.allclose(sdpa[field][0], eager[field][0], atol=1e-6), field
            # The tower's own it has not kept; transformers says so.
            assert sdpa.attentions is None and len(eager.attentions) == 2
        assert torch.allclose(found["sdpa"].image_embeds, model(**inputs).image_embeds, atol=1e-6)


class TestPrecisionAndSpeed:
    def test_gradient_checkpointing_gives_the_same_gradients(self):
        model = tiny_model(num_hidden_layers=2).train()
        expected = gradients(model)
        model.activation_checkpointing_enable()
        assert model.vision_fusion.layers[0].gradient_checkpointing
        found = gradients(model)
        assert expected.keys() == found.keys()
        for name in expected:
            assert torch.allclose(expected[name], found[name], atol=1e-6), name

    @pytest.mark.parametrize("mode", ["weighted_sum", "gated", "concat"])
    def test_bfloat16_is_finite_and_near(self, mode):
        model, inputs = tiny_model(fusion_mode=mode), tiny_inputs()
        with torch.no_grad():
            expected = model(**inputs)
            model.to(torch.bfloat16)
            inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
            found = model(**inputs, return_loss=True)
        assert found.loss.isfinite()
        for field in ("image_embeds", "text_embeds"):
            assert found[field].dtype == torch.bfloat16
            cosine = (expected[field] * found[field].float()).sum(dim=-1)
            assert cosine.min().item() > 0.995

    @pytest.mark.parametrize("implementation", ["sdpa", "eager"])
    def test_compiled_model_gives_the_same(self, implementation):
        model, inputs = tiny_model(max_level_tokens=9), tiny_inputs()
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            expected = model(**inputs)
            torch._dynamo.reset()
            found = torch.compile(model, backend="aot_eager", fullgraph=True)(**inputs)
        assert torch.allclose(expected.image_embeds, found.image_embeds, atol=1e-5)
        assert torch.allclose(expected.text_embeds, found.text_embeds, atol=1e-5)
        assert torch.allclose(expected.logits_per_image, found.logits_per_image, atol=1e-4)

    def test_offloaded_model_gives_the_same(self):
        model, inputs = tiny_model(), tiny_inputs()
        with torch.no_grad():
            expected = model(**inputs)
            cpu_offload(model, execution_device=torch.device("cpu"))
            # Weights lie elsewhere and are fetched for the time of their module's forward alone.
            assert model.vision_fusion.residual.gate.device.type == "meta"
            found = model(**inputs)
        assert torch.equal(expected.image_embeds, found.image_embeds)
        assert torch.equal(expected.logits_per_text, found.logits_per_text)


class TestFrozenTowers:
    @pytest.mark.parametrize("vision", ["vit", "efficientnet"])
    def test_kept_features_give_the_same_embeddings(self, vision):
        model = matrix_model(vision, "bert")
        inputs = tiny_inputs()
        pixel_values = inputs.pop("pixel_values")
        kept = {
            "vision_features": model.encode_tower(pixel_values=pixel_values),
            "text_features": model.encode_tower(**inputs),
        }
        product_ids = torch.tensor([0, 0, 1])
        direct = model(pixel_values=pixel_values, **inputs, return_loss=True, product_ids=product_ids)
        cached = model(**kept, return_loss=True, product_ids=product_ids)
        for field in ("image_embeds", "text_embeds", "logits_per_image", "loss"):
            assert torch.equal(direct[field], cached[field]), field
        assert cached.text_model_output.last_hidden_state is None
        cached.loss.backward()
        assert model.vision_fusion.residual.gate.grad is not None

    def test_encode_tower_leaves_its_inputs_and_keeps_no_graph(self):
        model, inputs = tiny_model(), tiny_inputs()
        inputs.pop("pixel_values")
        features = model.encode_tower(**inputs)
        assert set(inputs) == {"input_ids", "attention_mask"}
        assert not features.pooled.requires_grad

    def test_frozen_tower_stays_in_evaluation_mode(self):
        model = tiny_model()
        model.vision_model.requires_grad_(False)
        model.train()
        assert not any(module.training for module in model.vision_model.modules())
        assert model.text_model.training and model.vision_fusion.training and model.vision_head.training
        model.vision_model.requires_grad_(True)
        model.train()
        assert all(module.training for module in model.vision_model.modules())

    @pytest.mark.parametrize("tuning", ["frozen", "adapter", "full"])
    def test_statistics_of_a_tower_do_not_move(self, tuning):
        model = matrix_model("efficientnet", "bert")
        perturb(model)
        core = model
        if tuning == "adapter":
            targets = r"(text_model\..*\.query|vision_model\..*\.(reduce|expand))"
            adapter = LoraConfig(target_modules=targets, modules_to_save=["vision_head", "vision_fusion"])
            model = get_peft_model(model, adapter)
        elif tuning == "frozen":
            core.vision_model.requires_grad_(False)
        # Where anything of it trains, the tower as a whole is in training: its batch normalisations must not be.
        assert any(parameter.requires_grad for parameter in core.vision_model.parameters()) == (tuning != "frozen")
        before = {name: buffer.clone() for name, buffer in core.vision_model.named_buffers()}
        assert any("running_mean" in name for name in before)
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        weight = core.vision_fusion.residual.projection.weight.detach().clone()
        model(**tiny_inputs(), return_loss=True).loss.backward()
        optimizer.step()
        assert not torch.equal(weight, core.vision_fusion.residual.projection.weight)
        for name, buffer in core.vision_model.named_buffers():
            assert torch.equal(before[name], buffer), name
