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
import torch

from fusionmatch.evaluation.ranking import retrieval_metrics
from fusionmatch.evaluation.retrieval import CatalogueEmbeddings
from fusionmatch.evaluation.searches import hits_and_misses, image_searches, text_searches
from fusionmatch.evaluation.tables import format_table, metrics_table


def embeddings(image_angles, text_angles):
    def unit(degrees):
        radians = torch.tensor(degrees, dtype=torch.float32).deg2rad()
        return torch.stack([radians.cos(), radians.sin()], dim=1)

    return CatalogueEmbeddings(
        unit(image_angles), unit(text_angles), ["a", "a", "b", "c"], ["a", "b", "c"], ["mug <b>", "lamp & co", "傘"]
    )


BEFORE = embeddings([0, 10, 90, 180], [180, 90, 0])  # a and c changed over
AFTER = embeddings([0, 10, 90, 180], [0, 90, 120])


def measured(e):
    return retrieval_metrics(e.image_embeds, e.text_embeds, e.image_products, e.text_products)


def test_searches_rank_and_find_one_picture_a_product():
    first, second, third = text_searches(BEFORE, AFTER, top_k=3)
    assert (first.text, first.row, first.rank_before, first.rank_after) == ("mug <b>", 0, 3, 1)
    assert first.found == [0, 2, 3]  # of the two pictures of a only the nearer
    assert (second.rank_before, second.rank_after) == (1, 1)
    assert third.rank_after == 2
    hits, misses = hits_and_misses([first, second, third])
    assert [hit.text for hit in hits] == ["mug <b>", "lamp & co"]  # what gained most comes first
    assert [miss.text for miss in misses] == ["傘"]


def test_a_picture_query_does_not_find_itself():
    searches = image_searches(BEFORE, AFTER, top_k=3)
    assert searches[0].found == [1, 2, 3]
    assert all(search.row not in search.found for search in searches)


def test_the_table_says_what_is_better():
    rows = {row["name"]: row for row in metrics_table(measured(BEFORE), measured(AFTER))}
    assert rows["text → picture R@1"]["before"] == "33.3"
    assert rows["text → picture R@1"]["after"] == "66.7"
    assert rows["text → picture R@1"]["change"] == "+33.3"
    assert rows["text → picture R@1"]["direction"] == "up"
    # A smaller rank is better.
    assert rows["text → picture median rank"]["direction"] in ("up", "")
    worse = {row["name"]: row for row in metrics_table(measured(AFTER), measured(BEFORE))}
    assert worse["RSUM (of 600)"]["direction"] == "down"
    lines = format_table(measured(BEFORE), measured(AFTER)).splitlines()
    assert len({len(line) for line in lines}) == 1
