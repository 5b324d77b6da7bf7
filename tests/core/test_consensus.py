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
"""The consensus: concept bank and attention over it by closed forms, words found, and a bank that is kept."""

import math

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from fusionmatch import FusionMatchForImageTextRetrieval, FusionMatchModel
from fusionmatch.consensus_fusionmatch import FusionMatchConceptBank, FusionMatchConsensus

from .tiny import perturb, tiny_config, tiny_inputs, tiny_model


WORDS = ["red", "mug", "lamp"]
# Not symmetric, unlike that of a catalogue: one that is taken the wrong way round shows.
GRAPH = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
VECTORS = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


def model_with_bank(**settings: object) -> FusionMatchModel:
    """Three concepts, all weights moved away from their start."""
    model = tiny_model(**settings)
    model.set_concepts(WORDS, GRAPH, VECTORS)
    perturb(model)
    return model


def normed(vectors: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
    centred = vectors - vectors.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def consensus_by_hand(
    module: FusionMatchConsensus, instance: torch.Tensor, concepts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What [`FusionMatchConsensus.forward`] promises to return, for the fusion mode `"gated"`."""
    query = normed(instance, module.layer_norm) @ module.query.weight.t() + module.query.bias
    cosines = query @ concepts.t() / query.norm(dim=-1, keepdim=True) / concepts.norm(dim=-1)
    scores = (cosines * module.log_sharpness.exp()).exp()
    shares_of_concepts = scores / scores.sum(dim=-1, keepdim=True)
    consensus = normed(shares_of_concepts @ concepts, module.consensus_norm)
    gate = module.fusion.gate
    scores = (torch.cat([instance, consensus], dim=-1) @ gate.weight.t() + gate.bias).exp()
    shares = scores / scores.sum(dim=-1, keepdim=True)
    return shares[:, :1] * instance + shares[:, 1:] * consensus, consensus, shares_of_concepts.log(), shares


class TestClosedForms:
    @torch.no_grad()
    def test_two_convolutions_over_the_graph(self):
        bank = FusionMatchConceptBank(tiny_config(num_concepts=3, concept_dim=2, hidden_size=2, num_attention_heads=1))
        bank.graph.copy_(GRAPH)
        bank.vectors.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-2.0, 1.0]]))
        bank.fc1.weight.copy_(torch.eye(2))
        bank.fc1.bias.zero_()
        # The second layer swaps the two and takes 1 from what is then the second.
        bank.fc2.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        bank.fc2.bias.copy_(torch.tensor([0.0, -1.0]))
        # Over the graph [1, 1], [0, 2], [-1.5, 1]; a fifth of what is below 0: [1, 1], [0, 2], [-0.3, 1];
        # through the second layer [1, 0], [2, -1], [1, -1.3]; and over the graph again:
        expected = torch.tensor([[2.0, -0.5], [2.0, -1.0], [1.5, -1.3]])
        expected /= torch.tensor([[math.sqrt(4.25)], [math.sqrt(5)], [math.sqrt(3.94)]])
        torch.testing.assert_close(bank(), expected)

    @pytest.mark.parametrize("sharpness", [0.5, 10.0, 40.0])
    @torch.no_grad()
    def test_attention_over_the_concepts(self, sharpness):
        module = model_with_bank().vision_consensus
        perturb(module)
        module.log_sharpness.fill_(math.log(sharpness))
        generator = torch.Generator().manual_seed(2)
        instance = torch.randn(4, 16, generator=generator)
        concepts = torch.nn.functional.normalize(torch.randn(3, 16, generator=generator), dim=-1)
        found = module(instance, concepts)
        for ours, expected in zip(found, consensus_by_hand(module, instance, concepts), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_each_modality_looks_at_the_bank_for_itself(self):
        model = model_with_bank()
        instances = {}
        for tower in ("vision", "text"):
            branch = getattr(model, f"{tower}_fusion")
            branch.register_forward_hook(
                lambda _, inputs, found, tower=tower: instances.update({tower: found.instance})
            )
        outputs = model(**tiny_inputs())
        for tower in ("vision", "text"):
            output, residual = outputs[f"{tower}_model_output"], getattr(model, f"{tower}_fusion").residual
            fused, consensus, log_probs, shares = consensus_by_hand(
                getattr(model, f"{tower}_consensus"), instances[tower], model.concept_bank()
            )
            for ours, expected in (
                (output.concept_log_probs, log_probs),
                (output.consensus_weights, shares),
                (output.fused_embeds, residual.project(fused)),
                (output.instance_embeds, residual.project(instances[tower])),
                (output.consensus_embeds, residual.project(consensus)),
            ):
                torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
            # Through the gate into the embedding.
            gate = torch.tanh(residual.gate) * output.base_embeds.norm(dim=-1, keepdim=True)
            expected = output.base_embeds + gate * residual.project(fused)
            torch.testing.assert_close(output.pooler_output, expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_a_bank_that_nobody_filled_says_nothing(self):
        model = tiny_model(num_concepts=3, concept_dim=6)
        assert not model.concept_bank.graph.any() and not model.concept_bank.vectors.any()
        outputs = model(**tiny_inputs())
        assert outputs.image_embeds.isfinite().all()
        assert outputs.text_model_output.concept_log_probs.exp().allclose(torch.tensor(1 / 3))


class TestSetConcepts:
    def test_what_is_given_is_what_is_there(self):
        model = tiny_model().to(torch.bfloat16)
        model.set_concepts(["old", "older"], torch.eye(2), torch.ones(2, 4))
        model.set_concepts(WORDS, GRAPH, VECTORS)
        config = model.config
        assert (config.concept_words, config.num_concepts, config.concept_dim) == (WORDS, 3, 6)
        assert torch.equal(model.concept_bank.graph, GRAPH.bfloat16())
        assert torch.equal(model.concept_bank.vectors, VECTORS.bfloat16())
        parts = ["concept_bank", "vision_consensus", "text_consensus"]
        assert config.untrained_modules == parts
        for module in map(model.get_submodule, parts):
            assert not module.training
            assert all(tensor.dtype == torch.bfloat16 for tensor in module.state_dict().values())
        # CVSE's fixed sharpness is the start.
        assert model.vision_consensus.log_sharpness.item() == pytest.approx(math.log(10), rel=1e-2)

    @pytest.mark.parametrize("had_a_bank", [True, False])
    @pytest.mark.parametrize(
        ("words", "graph", "vectors", "message"),
        [
            (WORDS, torch.ones(3, 2), VECTORS, r"3 words need a graph of 3 x 3 .* a graph of \(3, 2\) and vectors of"),
            (WORDS, torch.ones(9), VECTORS, r"need a graph of 3 x 3 .* got a graph of \(9,\)"),
            ([], torch.ones(0, 0), torch.ones(0, 6), "one word or more"),
            (WORDS[:2], GRAPH, VECTORS[:2], r"2 words need a graph of 2 x 2 .* got a graph of \(3, 3\)"),
            (WORDS, GRAPH, VECTORS[:2], r"3 words need .* as many vectors, got .* vectors of \(2, 6\)"),
            (WORDS, GRAPH, torch.ones(3), r"as many vectors, got .* vectors of \(3,\)"),
            (WORDS, GRAPH, torch.ones(3, 0), r"as many vectors, got .* vectors of \(3, 0\)"),
        ],
    )
    def test_what_does_not_fit_is_refused_and_nothing_is_changed(self, words, graph, vectors, message, had_a_bank):
        model = model_with_bank() if had_a_bank else tiny_model()
        settings, state = model.config.to_dict(), {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message):
            model.set_concepts(words, graph, vectors)
        assert model.config.to_dict() == settings
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    def test_a_model_without_branch_is_refused(self):
        model = tiny_model(vision_feature_levels=[], text_feature_levels=[])
        with pytest.raises(ValueError, match="no fusion branch"):
            model.set_concepts(WORDS, GRAPH, VECTORS)
        assert model.config.num_concepts == 0 and model.config.concept_words == []
        assert model(**tiny_inputs()).image_embeds.isfinite().all()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"num_concepts": 2, "concept_words": WORDS}, "holds 3 words, but `num_concepts` is 2"),
            ({"num_concepts": -1}, "`num_concepts` must be 0 or more, got -1"),
        ],
    )
    def test_settings_that_contradict_each_other(self, settings, message):
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            tiny_config(**settings)


def core_of(model: FusionMatchModel | FusionMatchForImageTextRetrieval) -> FusionMatchModel:
    return getattr(model, "fusionmatch", model)


@pytest.mark.parametrize(
    ("saved_with_ranking_stage", "loaded_as"),
    [
        (False, FusionMatchModel),
        (False, FusionMatchForImageTextRetrieval),
        (True, FusionMatchForImageTextRetrieval),
    ],
)
@torch.no_grad()
def test_a_folder_holds_the_bank(saved_with_ranking_stage, loaded_as, tmp_path):
    """Whoever loads the model has no catalogue to find the concepts in anew."""
    model, inputs = model_with_bank(), tiny_inputs()
    expected = model(**inputs)
    whole = FusionMatchForImageTextRetrieval.from_dual_encoder(model) if saved_with_ranking_stage else model
    whole.save_pretrained(tmp_path)
    loaded = core_of(loaded_as.from_pretrained(tmp_path))
    assert loaded.config.concept_words == WORDS
    assert torch.equal(loaded.concept_bank.graph, GRAPH)
    assert torch.equal(loaded.concept_bank.vectors, VECTORS)
    found = loaded(**inputs)
    # Where a loaded weight lies in memory may change the last bit of a product.
    torch.testing.assert_close(found.image_embeds, expected.image_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, atol=1e-6, rtol=0)
    for tower in ("vision_model_output", "text_model_output"):
        ours, theirs = found[tower].concept_log_probs, expected[tower].concept_log_probs
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


class TestConceptsFound:
    @pytest.fixture
    def model(self) -> FusionMatchModel:
        """Of the concepts of the i-th picture and the i-th text the model thinks what is set here."""
        model = model_with_bank()
        tables = {
            "vision": [[0.2, 0.5, 0.3], [0.7, 0.1, 0.2], [0.1, 0.3, 0.6]],
            "text": [[0.1, 0.2, 0.7], [0.3, 0.6, 0.1], [0.6, 0.1, 0.3]],
        }
        for tower, table in tables.items():
            log_probs = torch.tensor(table).log()
            getattr(model, f"{tower}_consensus").register_forward_hook(
                lambda _, inputs, found, log_probs=log_probs: (*found[:2], log_probs, found[3])
            )
        return model

    def test_most_probable_first(self, model):
        found = model.concepts(top_k=2, **tiny_inputs())
        approx = pytest.approx
        assert found == {
            "image": [
                [("mug", approx(0.5)), ("lamp", approx(0.3))],
                [("red", approx(0.7)), ("lamp", approx(0.2))],
                [("lamp", approx(0.6)), ("mug", approx(0.3))],
            ],
            "text": [
                [("lamp", approx(0.7)), ("mug", approx(0.2))],
                [("mug", approx(0.6)), ("red", approx(0.3))],
                [("red", approx(0.6)), ("lamp", approx(0.3))],
            ],
        }

    def test_more_than_there_are_and_one_modality_alone(self, model):
        inputs = tiny_inputs()
        found = model.concepts(pixel_values=inputs.pop("pixel_values"))
        assert found.keys() == {"image"}
        assert [[word for word, _ in item] for item in found["image"]] == [
            ["mug", "lamp", "red"],
            ["red", "lamp", "mug"],
            ["lamp", "mug", "red"],
        ]
        assert model.concepts(**inputs).keys() == {"text"}

    def test_concepts_without_words_are_numbered(self, model):
        model.config.concept_words = []
        found = model.concepts(top_k=1, **tiny_inputs())
        assert [item[0][0] for item in found["image"]] == ["1", "0", "2"]

    def test_a_model_without_concepts_says_so(self):
        with pytest.raises(ValueError, match=r"no concepts. Give it some with `set_concepts`"):
            tiny_model().concepts(**tiny_inputs())

    def test_a_model_in_training_finds_the_same(self):
        """Neither dropout nor the statistics of the batch have a say, and the model goes on as it was."""
        model = model_with_bank(vision="efficientnet", hidden_dropout_prob=0.5, feature_dropout=0.5, head_dropout=0.5)
        inputs = tiny_inputs()
        expected = model.concepts(**inputs)
        model.text_model.requires_grad_(False)
        model.train()
        modes = {name: module.training for name, module in model.named_modules()}
        assert set(modes.values()) == {True, False}
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
        assert model.concepts(**inputs) == expected
        with pytest.raises(ValueError, match="got neither"):
            model.concepts()
        assert {name: module.training for name, module in model.named_modules()} == modes
        assert all(torch.equal(buffer, statistics[name]) for name, buffer in model.named_buffers())
        model.eval().concepts(**inputs)
        assert not any(module.training for module in model.modules())
