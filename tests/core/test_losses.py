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
"""Losses: closed forms, properties, gradients, and parity with other libraries."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from fusionmatch.losses_fusionmatch import (
    CONTRASTIVE_LOSSES,
    ConceptDivergenceLoss,
    MatchingLoss,
    TripletLoss,
    complementary_contrastive_loss,
    concept_divergence,
    infonce_loss,
    matching_loss,
    sigmoid_loss,
    triplet_loss,
)


def same(products):
    ids = torch.tensor(products)
    return ids[:, None] == ids


def table(rows, columns=None, seed=0):
    return torch.randn(rows, columns or rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestInfoNCE:
    @pytest.mark.parametrize("size", [1, 2, 5, 64])
    def test_equal_embeddings(self, size):
        assert infonce_loss(torch.zeros(size, size)).item() == pytest.approx(math.log(size), abs=1e-6)

    def test_unique_products_are_clip_s_loss(self):
        logits = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(6)
        cross_entropy = torch.nn.functional.cross_entropy
        expected = (cross_entropy(logits, labels) + cross_entropy(logits.t(), labels)) / 2
        assert torch.allclose(infonce_loss(logits), expected)
        assert torch.allclose(infonce_loss(logits, labels[:, None] == labels), expected)

    def test_two_positives_by_hand(self):
        # exp of the rows: (1, 2, 1), (1, 1, 1), (2, 1, 1), with sums 4, 3, 4; texts 0 and 1 are one product.
        logits = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 1.0], [2.0, 1.0, 1.0]]).log()
        positives = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
        rows = [-(math.log(1 / 4) + math.log(2 / 4)) / 2, math.log(3), math.log(4)]
        columns = [-(math.log(1 / 4) + math.log(1 / 4)) / 2, -(math.log(2 / 4) + math.log(1 / 4)) / 2, math.log(3)]
        expected = (sum(rows) / 3 + sum(columns) / 3) / 2
        assert infonce_loss(logits, positives).item() == pytest.approx(expected, abs=1e-6)

    def test_rows_without_a_positive_do_not_count(self):
        logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
        positives = torch.tensor([[True, False], [False, True], [False, False]])
        rows = logits.log_softmax(dim=1)
        columns = logits.log_softmax(dim=0)
        expected = -(rows[0, 0] + rows[1, 1]) / 4 - (columns[0, 0] + columns[1, 1]) / 4
        assert torch.allclose(infonce_loss(logits, positives), expected)

    @given(products=st.lists(st.integers(0, 4), min_size=1, max_size=8), seed=st.integers(0, 1000))
    @settings(max_examples=60, deadline=None)
    def test_order_of_the_batch_does_not_matter(self, products, seed):
        generator = torch.Generator().manual_seed(seed)
        logits = 5 * torch.randn(len(products), len(products), generator=generator)
        order = torch.randperm(len(products), generator=generator)
        ids = torch.tensor(products)
        loss = infonce_loss(logits, ids[:, None] == ids)
        shuffled = ids[order]
        again = infonce_loss(logits[order][:, order], shuffled[:, None] == shuffled)
        assert torch.allclose(loss, again, atol=1e-5)
        # Swapping texts and pictures does not matter either, and soft targets never score below their entropy.
        assert torch.allclose(loss, infonce_loss(logits.t(), ids[:, None] == ids), atol=1e-5)
        counts = (ids[:, None] == ids).sum(dim=1).float()
        assert loss.item() >= counts.log().mean().item() - 1e-5


class TestSigmoid:
    def test_by_hand(self):
        logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
        terms = [(1, 2.0), (-1, -1.0), (-1, 0.5), (1, 3.0)]
        expected = sum(math.log(1 + math.exp(-z * s)) for z, s in terms) / 2
        assert sigmoid_loss(logits).item() == approx(expected, abs=1e-6)

    @pytest.mark.parametrize("size", [1, 3, 16])
    def test_no_knowledge_at_all(self, size):
        assert sigmoid_loss(torch.zeros(size, size)).item() == approx(size * math.log(2), abs=1e-5)

    def test_positives_of_a_product(self):
        logits = table(3)
        z = torch.where(same([7, 7, 9]), 1.0, -1.0)
        assert sigmoid_loss(logits, same([7, 7, 9])).item() == approx((1 + (-z * logits).exp()).log().sum().item() / 3)


class TestTriplet:
    def test_by_hand(self):
        similarities = torch.tensor([[0.9, 0.8, 0.1], [0.3, 0.5, 0.0], [0.2, 0.1, 0.6]])
        texts = [0.2 - 0.9 + 0.8, 0.2 - 0.5 + 0.3, 0]
        images = [0, 0.2 - 0.5 + 0.8, 0]
        expected = sum(max(0, hinge) for hinge in texts) / 3 + sum(max(0, hinge) for hinge in images) / 3
        assert triplet_loss(similarities).item() == approx(expected, abs=1e-6)

    def test_mean_over_negatives_by_hand(self):
        similarities = torch.tensor([[0.5, 0.6], [0.4, 0.5]])
        # Texts: hinges 0.3 and 0.1; images: 0.1 and 0.3; one negative each, so hardest and mean are the same.
        assert triplet_loss(similarities, hardest=False).item() == approx(0.4, abs=1e-6)
        assert triplet_loss(similarities, hardest=True).item() == approx(0.4, abs=1e-6)
        wide = torch.tensor([[0.5, 0.6, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        # Text 0 alone is in trouble: (0.3 + 0.2) / 2 of 3 texts; image 1: none; image 2: none; image 0: none.
        assert triplet_loss(wide, hardest=False).item() == approx(0.25 / 3, abs=1e-6)

    def test_variants_are_no_rivals(self):
        similarities = torch.tensor([[0.5, 0.9], [0.9, 0.5]])
        assert triplet_loss(similarities, same([1, 1])).item() == 0
        assert triplet_loss(similarities).item() == approx(1.2)

    def test_warm_up(self):
        similarities = table(5).float().tanh()
        loss, positives = TripletLoss(warmup_steps=3), torch.eye(5).bool()
        for step in (0, 2):
            assert loss(similarities, similarities, positives, step) == triplet_loss(similarities, hardest=False)
        assert loss(similarities, similarities, positives, 3) == triplet_loss(similarities, hardest=True)

    @pytest.mark.parametrize("settings", [{"margin": 0.0}, {"margin": 3.0}, {"warmup_steps": -1}])
    def test_settings_outside_their_range(self, settings):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
            TripletLoss(**settings)


class TestComplementary:
    def test_by_hand(self):
        # Softmax of (0, ln 3) is (1/4, 3/4), of the columns (1/2, 1/2) and (3/4, 1/4).
        logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
        rows = [-math.log(1 - 3 / 4), -math.log(1 - 1 / 2)]
        columns = [-math.log(1 - 1 / 2), -math.log(1 - 3 / 4)]
        assert complementary_contrastive_loss(logits).item() == approx(sum(rows + columns) / 4, abs=1e-5)

    def test_a_wrong_pair_pulls_less_than_in_infonce(self):
        """Text 0 is called a pair of image 0 but is like image 1: the pull towards image 0 stays bounded."""
        pulls = {}
        for name, loss in (("infonce", infonce_loss), ("complementary", complementary_contrastive_loss)):
            logits = torch.tensor([[-9.0, 9.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]], requires_grad=True)
            loss(logits).backward()
            pulls[name] = -logits.grad[0, 0].item()
        assert pulls["complementary"] < 0.01 * pulls["infonce"]

    def test_a_certain_mistake_is_finite(self):
        logits = torch.tensor([[0.0, 500.0], [0.0, 0.0]], requires_grad=True)
        loss = complementary_contrastive_loss(logits)
        loss.backward()
        assert loss.isfinite() and logits.grad.isfinite().all()


class TestConcepts:
    def test_by_hand(self):
        texts = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
        images = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
        expected = (0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25) + 0) / 2
        assert concept_divergence(texts, images).item() == approx(expected, abs=1e-6)
        back = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5) + 0) / 2
        assert concept_divergence(texts, images, symmetric=True).item() == approx((expected + back) / 2, abs=1e-6)

    def test_labels_by_hand(self):
        texts, images = table(3, 4).log_softmax(dim=1), table(3, 4, seed=1).log_softmax(dim=1)
        known = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()

        def named(p):
            # Uniform over two of four; one alone; nothing known of the third.
            first = sum(0.5 * math.log(0.5 / p[0, i].exp().item()) for i in (0, 1))
            return (first + math.log(1 / p[1, 3].exp().item())) / 2

        agreed = concept_divergence(texts, images).item()
        found = concept_divergence(texts, images, text_labels=known, image_labels=known, label_share=0.2).item()
        assert found == approx(0.8 * agreed + 0.2 * (named(texts) + named(images)) / 2)

    def test_no_label_at_all_leaves_the_agreement(self):
        texts, images = table(2, 4).log_softmax(dim=1), table(2, 4, seed=1).log_softmax(dim=1)
        none = torch.zeros(2, 4).bool()
        found = concept_divergence(texts, images, text_labels=none, image_labels=none, label_share=0.5)
        assert found.item() == approx(concept_divergence(texts, images).item() / 2)

    def test_equal_is_zero_and_else_above(self):
        log_probs = table(4, 9).log_softmax(dim=1)
        assert concept_divergence(log_probs, log_probs).item() == approx(0, abs=1e-12)
        assert concept_divergence(log_probs, log_probs.flip(0)).item() > 0

    def test_several_texts_of_a_picture(self):
        texts, images = table(3, 5).log_softmax(dim=1), table(2, 5, seed=1).log_softmax(dim=1)
        positives = torch.tensor([[True, False], [True, False], [False, True]])
        kl = torch.nn.functional.kl_div
        expected = sum(kl(images[j], texts[i], log_target=True, reduction="sum") for i, j in ((0, 0), (1, 0), (2, 1)))
        assert concept_divergence(texts, images, positives).item() == approx(expected.item() / 3)


ALL = {
    "infonce": infonce_loss,
    "sigmoid": sigmoid_loss,
    "triplet": triplet_loss,
    "triplet, mean": lambda x, p=None, ignored=None: triplet_loss(x, p, hardest=False, ignored=ignored),
    "complementary": complementary_contrastive_loss,
}


@pytest.mark.parametrize("name", ALL)
class TestAll:
    def test_gradcheck(self, name):
        # Away from the kinks of hinges and of the hardest negative.
        scores = (2 * table(4, 5)).requires_grad_()
        positives = same([0, 1, 1, 2, 3])[:4]
        assert torch.autograd.gradcheck(lambda x: ALL[name](x, positives), [scores], eps=1e-6, atol=1e-5)

    def test_a_product_is_never_its_own_negative(self, name):
        """Two items of one product are never pushed apart; those of others are, or pull less than a worse one."""
        scores = table(4).requires_grad_()
        ALL[name](scores, same([7, 7, 9, 8])).backward()
        assert scores.grad[0, 1].item() <= 0 and scores.grad[1, 0].item() <= 0
        assert scores.grad[:2, 2:].sum().item() > 0 and scores.grad[2:, :2].sum().item() > 0

    def test_an_ignored_pair_is_neither_pushed_nor_pulled(self, name):
        scores, ignored = table(5).requires_grad_(), torch.zeros(5, 5).bool()
        # The hardest negatives of all, so that each loss would push them.
        scores.data[0, 1] = scores.data[3, 2] = 9.0
        ignored[0, 1] = ignored[3, 2] = True
        loss = ALL[name](scores, None, ignored=ignored)
        loss.backward()
        assert (scores.grad[ignored] == 0).all() and scores.grad[~ignored].any()
        other = scores.detach().clone()
        other[ignored] = -3.0
        assert ALL[name](other, None, ignored=ignored).item() == approx(loss.item())
        # A positive stays one, and a text whose pictures are all ignored does not break the others.
        assert ALL[name](other, None, ignored=torch.eye(5).bool()).item() == approx(ALL[name](other).item())
        ignored[4] = True
        ALL[name](scores, same([0, 1, 2, 3, 4]).roll(1, 0), ignored=ignored).backward()
        assert scores.grad.isfinite().all()

    def test_texts_and_pictures_can_change_places(self, name):
        scores, positives = table(6), same([0, 1, 1, 2, 3, 0])
        assert ALL[name](scores, positives).item() == approx(ALL[name](scores.t(), positives.t()).item())

    def test_half_precision_is_computed_in_single(self, name):
        scores = (8 * table(6)).to(torch.bfloat16)
        assert ALL[name](scores).dtype == torch.float32
        assert ALL[name](scores).item() == approx(ALL[name](scores.float()).item())

    def test_wrong_shapes(self, name):
        with pytest.raises(ValueError, match=r"\(2, 2\).*\(3, 3\)"):
            ALL[name](table(3), torch.eye(2).bool())
        with pytest.raises(ValueError, match="texts, images"):
            ALL[name](torch.zeros(3))
        with pytest.raises(ValueError, match="`ignored` has the shape"):
            ALL[name](table(3), None, ignored=torch.eye(2).bool())


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_modules_are_their_functions(name):
    scores, positives = table(5).float(), same([0, 1, 1, 2, 3])
    loss = CONTRASTIVE_LOSSES[name]()
    assert torch.equal(
        loss(scores, 7 * scores, positives), ALL[name](scores if name == "triplet" else 7 * scores, positives)
    )
    assert loss.get_config_dict() == ({"margin": 0.2, "warmup_steps": 0} if name == "triplet" else {})
    assert loss.citation and loss.name == name


def test_the_mean_of_hinges_takes_no_memory_of_all_triples():
    scores, positives = table(40, 8), torch.arange(40)[:, None] // 5 == torch.arange(8)[None, :]
    total = [
        torch.stack([(0.2 - row[p] + row[n]).clamp(min=0).mean() for p in on.nonzero().flatten()])
        for table_, on_ in ((scores, positives), (scores.t(), positives.t()))
        for row, on in zip(table_, on_, strict=True)
        for n in [~on]
    ]
    texts, images = torch.cat(total[:40]), torch.cat(total[40:])
    assert triplet_loss(scores, positives, hardest=False).item() == approx((texts.mean() + images.mean()).item())


class TestMatching:
    def test_at_chance(self):
        # 3 positive pairs, 4 + 4 negatives: ln 2 whatever their numbers.
        loss = matching_loss(table(4), lambda texts, images: torch.zeros(len(texts)), same([0, 1, 2, 2]))
        assert loss.item() == approx(math.log(2))

    def test_the_hardest_negatives_by_hand(self):
        logits = torch.tensor([[5.0, 3.0, 1.0], [0.0, 5.0, 2.0], [4.0, 1.0, 5.0]])
        seen = []

        def match(texts, images):
            seen.extend(zip(texts.tolist(), images.tolist(), strict=True))
            return torch.arange(9.0)

        loss = matching_loss(logits, match, sample=False)
        assert seen == [(0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (2, 0), (2, 0), (0, 1), (1, 2)]
        softplus = torch.nn.functional.softplus
        expected = (softplus(-torch.arange(3.0)).mean() + softplus(torch.arange(3.0, 9.0)).mean()) / 2
        assert loss.item() == approx(expected.item())

    @given(st.lists(st.integers(0, 3), min_size=2, max_size=7), st.integers(0, 99))
    @settings(max_examples=50, deadline=None)
    def test_no_positive_and_nothing_ignored_is_drawn(self, products, seed):
        positives = same(products)
        ignored = torch.rand(positives.shape, generator=torch.Generator().manual_seed(seed)) < 0.3
        drawn = []

        def match(texts, images):
            drawn.append((texts, images))
            return torch.zeros(len(texts))

        matching_loss(30 * table(len(products), seed=seed).float(), match, positives, ignored=ignored)
        ((texts, images),) = drawn
        count = len(products)  # a positive for each text comes first
        assert positives[texts[:count], images[:count]].all()
        assert not (positives | ignored)[texts[count:], images[count:]].any()

    def test_gradcheck(self):
        odds = table(4).requires_grad_()
        loss = MatchingLoss().eval()
        assert torch.autograd.gradcheck(
            lambda x: loss(table(4, seed=1), lambda t, i: x[t, i].double()), [odds], atol=1e-4
        )


class TestConceptDivergence:
    def test_gradcheck_with_labels(self):
        texts, images = table(3, 5).requires_grad_(), table(3, 5, seed=1).requires_grad_()
        labels = torch.rand(3, 5) < 0.5
        loss = ConceptDivergenceLoss(symmetric=True, label_share=0.4)

        def divergence(one, other):
            return loss(one.log_softmax(1), other.log_softmax(1), same([0, 0, 1]), labels, labels)

        assert torch.autograd.gradcheck(divergence, [texts, images])
        assert loss.get_config_dict() == {"symmetric": True, "label_share": 0.4}

    def test_what_does_not_fit(self):
        concepts = table(3, 5).log_softmax(1)
        with pytest.raises(ValueError, match="for one side alone"):
            concept_divergence(concepts, concepts, text_labels=torch.ones(3, 5))
        with pytest.raises(ValueError, match="Texts have 5 concepts and images 4"):
            concept_divergence(concepts, concepts[:, :4])
        with pytest.raises(ValueError, match="label_share"):
            ConceptDivergenceLoss(label_share=2)


def test_infonce_is_sentence_transformers_multiple_negatives_ranking_loss():
    class Stub(SentenceTransformer):
        def __init__(self):
            torch.nn.Module.__init__(self)

    directions = ("query_to_doc", "doc_to_query")
    peer = MultipleNegativesRankingLoss(Stub(), scale=20.0, directions=directions, partition_mode="per_direction")
    texts, images = (torch.nn.functional.normalize(table(6, 8, seed=seed).float()) for seed in (0, 1))
    expected = peer.compute_loss_from_embeddings([texts, images], None)
    assert infonce_loss(20 * texts @ images.t()).item() == approx(expected.item(), abs=1e-5)
