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
import datasets
import pytest
import torch

from fusionmatch import CatalogueIndex, evaluate_retrieval
from fusionmatch.evaluation.reranking import match_logits, rerank, reranked_ranks
from fusionmatch.evaluation.retrieval import embed_catalogue
from fusionmatch.modeling_fusionmatch_ranking import FusionMatchForImageTextRetrieval

from ..core.tiny import perturb, tiny_config, tiny_inputs, tiny_pictures, tiny_processor


@pytest.fixture(scope="module")
def fresh():
    torch.manual_seed(0)
    return FusionMatchForImageTextRetrieval(tiny_config(gate_init_value=0.3)).eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = FusionMatchForImageTextRetrieval(tiny_config(gate_init_value=0.3)).eval()
    perturb(model)
    return model


@pytest.fixture(scope="module")
def catalogue():
    colours = ["red", "blue", "green", "white", "black", "a", "mug", "lamp", "shoe", "the"]
    return datasets.Dataset.from_dict(
        {
            "image": tiny_pictures(10),
            "texts": [[f"{colour} mug {'a ' * i}"] for i, colour in enumerate(colours)],
            "product": [f"p{i}" for i in range(10)],
            "image_id": [f"picture-{i}" for i in range(10)],
        }
    ).cast_column("image", datasets.Image())


def test_a_new_stage_starts_with_the_log_odds_of_its_base():
    """Pairs at 25 and 27, hard negatives at 21 and 23: log-odds of 4 / 1 a step around 24, by two Gaussians."""
    model = FusionMatchForImageTextRetrieval(tiny_config()).eval()
    logits = torch.full((2, 2), 22.0) + torch.tensor([[3.0, 1.0], [-1.0, 5.0]])
    model.start_from_similarity(logits, torch.eye(2, dtype=torch.bool), lambda statistics: statistics)
    assert model.ranker.similarity_weight.item() == 1.0  # 4 / 1, held at its ceiling
    assert model.ranker.bias.item() == pytest.approx(-24)
    logits = 22 + 10 * (logits - 22)
    model.start_from_similarity(logits, torch.eye(2, dtype=torch.bool), lambda statistics: statistics)
    assert model.ranker.similarity_weight.item() == pytest.approx(40 / 100)
    assert model.ranker.bias.item() == pytest.approx(-0.4 * 42)


def test_ranks_by_hand():
    # Four queries for products a, b, c, z; the gallery holds a b c c d.
    candidates = torch.tensor([[1, 0, 4], [0, 2, 4], [2, 3, 1], [0, 1, 2]])
    scores = torch.tensor([[0.1, 0.9, 0.5], [3.0, 2.0, 1.0], [0.2, 0.7, 0.7], [1.0, 2.0, 3.0]])
    ranks = torch.tensor([2, 4, 1, 0])
    found = reranked_ranks(ranks, candidates, scores, list("abcz"), list("abccd"))
    # a: best score. b: not a candidate, stays where it was. c: its better picture ties with b, ties count against it.
    # z: nothing to find.
    assert found.tolist() == [1, 4, 2, 0]


def test_an_item_that_was_no_candidate_stays_behind_all_candidates():
    found = reranked_ranks(torch.tensor([3]), torch.tensor([[0, 1, 2]]), torch.ones(1, 3), ["z"], list("abcz"))
    assert found.tolist() == [4]


def test_an_untrained_stage_ranks_as_the_embeddings_do(fresh, catalogue):
    arguments = (fresh, tiny_processor(), catalogue)
    alone = evaluate_retrieval(*arguments, disable_tqdm=True, ranking_top_k=0)
    assert evaluate_retrieval(*arguments, disable_tqdm=True, ranking_top_k=10) == alone


def test_the_logits_of_chosen_pairs_are_those_of_the_model(model):
    inputs = tiny_inputs()
    with torch.no_grad():
        outputs = model(**inputs)
    texts, images = outputs.text_model_output, outputs.vision_model_output
    kept = [row[mask.bool()] for row, mask in zip(texts.fusion_tokens, texts.fusion_mask, strict=True)]
    assert len({len(tokens) for tokens in kept}) == 2  # one is padded
    found = match_logits(model, (outputs.text_embeds, kept), (outputs.image_embeds, list(images.fusion_tokens)))
    torch.testing.assert_close(found, outputs.match_logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_candidates_are_the_nearest_and_scored_pair_by_pair(model, direction):
    outputs = model(**tiny_inputs(batch=5))
    kept = [
        row[mask.bool()]
        for row, mask in zip(
            outputs.text_model_output.fusion_tokens, outputs.text_model_output.fusion_mask, strict=True
        )
    ]
    texts = (outputs.text_embeds.detach(), kept)
    images = (outputs.image_embeds.detach(), list(outputs.vision_model_output.fusion_tokens))
    candidates, scores = rerank(model, texts, images, direction, top_k=3, batch_size=2, disable_tqdm=True)
    cosines = texts[0] @ images[0].t() if direction == "t2i" else images[0] @ texts[0].t()
    assert torch.equal(candidates, cosines.topk(3, dim=1).indices)
    for query in range(5):
        for column, other in enumerate(candidates[query].tolist()):
            text, image = (other, query) if direction == "i2t" else (query, other)
            one = match_logits(model, (texts[0][[text]], [texts[1][text]]), (images[0][[image]], [images[1][image]]))
            torch.testing.assert_close(scores[query, column], one[0], atol=1e-5, rtol=1e-5)


def test_metrics_and_search_follow_the_stage(model, catalogue, tmp_path):
    processor = tiny_processor()
    found = embed_catalogue(model, processor, catalogue, disable_tqdm=True, ranking_top_k=4)
    candidates, scores = found.candidates["t2i"]
    index = CatalogueIndex.build(model, processor, catalogue, disable_tqdm=True)
    hits = index.search(found.texts[2], top_k=10, ranking_top_k=4)
    order = candidates[2][scores[2].argsort(descending=True)].tolist()
    assert [hit.row for hit in hits][:4] == order
    assert [hit.row for hit in hits] == found.image_scores(2).argsort(descending=True).tolist()
    assert [hit.match is None for hit in hits] == [False] * 4 + [True] * 6
    assert hits[0].match == pytest.approx(scores[2].max().sigmoid().item(), abs=1e-4)
    assert found.ranks("t2i")[2] == [hit.product for hit in hits].index("p2") + 1
    index.save_pretrained(tmp_path)
    again = CatalogueIndex.from_pretrained(tmp_path, model, processor)
    assert again.search(found.texts[2]) == index.search(found.texts[2])
    # A picture as a query is a matter of the embeddings alone.
    assert index.search(catalogue[3]["image"], top_k=1)[0].match is None


def test_a_negative_number_of_candidates_is_refused(model, catalogue):
    with pytest.raises(ValueError, match="`ranking_top_k` must be 0 or more"):
        embed_catalogue(model, tiny_processor(), catalogue, ranking_top_k=-1)
