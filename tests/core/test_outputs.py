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
"""Batches that go through the model in parts give what the whole would have given."""

import pytest
import torch
from peft import get_peft_model
from transformers import set_seed

from fusionmatch import FusionMatchForImageTextRetrieval
from fusionmatch.outputs_fusionmatch import embed_in_parts
from fusionmatch.training import lora_config

from .tiny import END, perturb, tiny_config, tiny_inputs, tiny_model


@pytest.mark.parametrize("levels", [[-1], [-2, -1]])
def test_texts_read_in_parts_of_similar_length_give_the_same(levels):
    """A batch for training, large enough to be sorted by length, beside the same texts in small ones."""
    model = tiny_model(text_feature_levels=levels, hidden_dropout_prob=0.0)
    model.text_model.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = torch.randint(5, END, (70, 20))
        mask = (torch.arange(20)[None, :] < torch.randint(3, 19, (70, 1))).long()
    with torch.no_grad():
        parts = [
            model.get_text_features(input_ids=i, attention_mask=m)
            for i, m in zip(ids.split(10), mask.split(10), strict=True)
        ]
        features = model.encode_tower(input_ids=ids, attention_mask=mask)
        model.train()
        lengths = []
        model.text_fusion.register_forward_pre_hook(lambda _, args: lengths.append(args[0].levels[0].shape[1]))
        wholes = [
            model(input_ids=ids, attention_mask=mask).text_model_output,
            model(text_features=features).text_model_output,
        ]
        assert len(lengths) == 4 and lengths[:2] == lengths[2:] and lengths[0] < lengths[1] < 20
    for whole in wholes:
        for name in ("pooler_output", "fused_embeds", "fusion_weights"):
            expected = torch.cat([part[name] for part in parts])
            assert torch.allclose(whole[name], expected, atol=1e-5), name
        for row in range(70):
            found = whole.fusion_tokens[row][whole.fusion_mask[row].bool()]
            part = parts[row // 10]
            expected = part.fusion_tokens[row % 10][part.fusion_mask[row % 10].bool()]
            assert torch.allclose(found, expected, atol=1e-5)


class TestMiniBatches:
    """Gradient caching: a large batch in small parts, each computed anew in the backward pass."""

    @pytest.mark.parametrize(
        ("vision", "size", "adapter"),
        [("vit", 1, False), ("vit", 2, True), ("vit", 5, False), ("vit", 64, False), ("resnet", 2, False)],
    )
    def test_gradients_equal_those_of_the_whole_batch(self, vision, size, adapter):
        # In double precision only what is computed differs shows, not the order of sums that a CPU's kernels choose.
        model = tiny_model(vision, gate_init_value=0.3)
        if adapter:
            model = get_peft_model(model, lora_config(model, init_lora_weights=False, lora_dropout=0.0))
        model = model.double().train()
        inputs = tiny_inputs(7)
        inputs["attention_mask"][::2, -2:] = 0
        found = {}
        for mini_batch_size in (None, size):
            model.zero_grad()
            outputs = model(**inputs, return_loss=True, mini_batch_size=mini_batch_size)
            outputs.loss.backward()
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            found[mini_batch_size] = outputs, {name: p.grad.clone() for name, p in trained.items()}
        (whole, expected), (parts, gradients) = found[None], found[size]
        assert torch.allclose(whole.loss, parts.loss, rtol=0, atol=1e-10)
        assert torch.allclose(whole.logits_per_text, parts.logits_per_text, rtol=0, atol=1e-10)
        for name in expected:
            assert torch.allclose(expected[name], gradients[name], rtol=0, atol=1e-10), name

    def test_dropout_is_the_same_when_a_part_is_computed_anew(self):
        model = tiny_model(feature_dropout=0.5, hidden_dropout_prob=0.5, gate_init_value=0.3).train()
        inputs, found = tiny_inputs(6), []
        for recompute in (False, True):
            set_seed(0)
            model.zero_grad()
            parts = [(rows, None) for rows in torch.arange(6).split(2)]
            output = embed_in_parts(
                model.get_image_features, parts, {"pixel_values": inputs["pixel_values"]}, recompute
            )
            output.pooler_output.square().sum().backward()
            found.append(model.vision_head.fc1.weight.grad.clone())
        assert torch.allclose(found[0], found[1], atol=1e-6)

    def test_ranking_stage(self):
        model = FusionMatchForImageTextRetrieval(tiny_config(gate_init_value=0.3)).double().eval()
        perturb(model.ranker)
        inputs, found = tiny_inputs(6), []
        for size in (None, 2):
            model.zero_grad()
            model(**inputs, return_loss=True, mini_batch_size=size).loss.backward()
            found.append({name: p.grad.clone() for name, p in model.named_parameters()})
        for name, gradient in found[0].items():
            assert torch.allclose(gradient, found[1][name], rtol=0, atol=1e-10), name

    def test_memory_does_not_grow_with_the_batch(self):
        """What autograd keeps for the backward pass, counted."""
        model, kept = tiny_model().train(), []
        for size in (None, 4):
            for batch in (8, 32):
                total = 0

                def count(tensor):
                    nonlocal total
                    total += tensor.numel()
                    return tensor

                with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                    model(**tiny_inputs(batch), return_loss=True, mini_batch_size=size)
                kept.append(total)
        whole_8, whole_32, parts_8, parts_32 = kept
        assert whole_32 > 3 * whole_8
        assert parts_32 - parts_8 < 0.05 * (whole_32 - whole_8)

    def test_attentions_are_refused_in_mini_batches(self):
        with pytest.raises(ValueError, match="Leave out `mini_batch_size`"):
            tiny_model()(**tiny_inputs(4), mini_batch_size=2, output_attentions=True)
