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
"""Positive control of the ranking stage: it learns what only a look at picture and text together can tell."""

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from torch import nn

from fusionmatch import FusionMatchForImageTextRetrieval, FusionMatchModel, evaluate_retrieval
from fusionmatch.outputs_fusionmatch import FusionMatchTowerFeatures
from fusionmatch.training.guards import TrainingStoppedError

from ..core.tiny import tiny_config, tiny_processor
from .test_trainer import losses, make_trainer


PAIRS = 32
THINGS = 5
# Of the tiny towers, of their embeddings and of the tokens alike.
SIZE = 32


class Features:
    """
    Features of one tower by row. The pooled ones are the same for all pairs but for noise, without which they would
    tie. Tokens are a thing and its colour each: all pairs have the same things and the same colours, and only which
    goes with which tells them apart. So the mean of a pair's tokens, normalised or not, is that of any other pair.
    Texts (0) and pictures (1) say it in channels of their own.
    """

    def __init__(self, side: int) -> None:
        noise = torch.randn(PAIRS, SIZE, generator=torch.Generator().manual_seed(side))
        orders = random.Random(0).sample(list(itertools.permutations(range(THINGS))), PAIRS)
        things, colours = torch.eye(SIZE)[2 * THINGS * side :].split(THINGS)[:2]
        self.pooled = 1 + 0.05 * noise
        self.tokens = torch.stack([things + colours[list(order)] for order in orders])

    def __call__(self, rows: Sequence[int]) -> FusionMatchTowerFeatures:
        chosen = torch.tensor(list(rows))
        return FusionMatchTowerFeatures(pooled=self.pooled[chosen], levels=(self.tokens[chosen],))


def new_stage() -> FusionMatchForImageTextRetrieval:
    """A new ranking stage on a frozen base that hands on pooled features and tokens as they are."""
    torch.manual_seed(0)
    levels = {"vision_feature_levels": [-1], "text_feature_levels": [-1], "num_hidden_layers": 0}
    sizes = {"projection_dim": SIZE, "hidden_size": SIZE, "intermediate_size": 2 * SIZE}
    # Weights that are as small as those of a wide stage would keep one that is so narrow at its start for long.
    base = FusionMatchModel(tiny_config(base_head="none", initializer_range=0.1, **levels, **sizes))
    for branch in (base.vision_fusion, base.text_fusion):
        nn.init.eye_(branch.level_projections[0].weight)
        nn.init.zeros_(branch.level_embeddings)
    return FusionMatchForImageTextRetrieval.from_dual_encoder(base.requires_grad_(False))


def leave_only_the_look_of(side: str, model: FusionMatchForImageTextRetrieval) -> None:
    """
    Holds at zero all else that makes more of tokens than their mean: 32 pairs could be learnt by heart from features
    of each side alone, and cross-attention would not be missed.
    """
    ranker = model.ranker
    held = [pooling.query for pooling in (ranker.text_pooling, ranker.vision_pooling)]
    for name, layers in (("texts", ranker.text_layers), ("pictures", ranker.vision_layers)):
        for layer in layers:
            for output in (layer.fc2, *([] if name == side else [layer.cross_attn.out_proj])):
                held += [output.weight, output.bias]
    for parameter in held:
        nn.init.zeros_(parameter).requires_grad_(False)


def test_a_stage_at_a_hopeless_rate_is_stopped(splits, tmp_path):
    settings = {"loss_components": ["matching"], "max_steps": 60, "learning_rate": 5.0}
    settings |= {"eval_strategy": "no", "save_strategy": "no"}
    with pytest.raises(TrainingStoppedError, match=r"learning rate .* is too high"):
        make_trainer(new_stage(), splits, tiny_processor(), tmp_path, **settings).train()


@pytest.mark.parametrize("looking", ["texts", "pictures", "both, and all else"])
def test_the_stage_learns_what_the_embeddings_cannot_tell(looking: str, tmp_path: Path) -> None:
    model, texts, pictures = new_stage(), Features(0), Features(1)
    if looking in ("texts", "pictures"):
        leave_only_the_look_of(looking, model)
    names = [str(i) for i in range(PAIRS)]
    picture = Image.new("RGB", (SIZE, SIZE))
    pairs = datasets.Dataset.from_dict(
        {"image": [picture] * PAIRS, "texts": [[name] for name in names], "product": names}
    )
    settings = {"loss_components": ["matching"], "per_device_train_batch_size": PAIRS, "image_views": 1}
    settings |= {"max_steps": 100, "learning_rate": 5e-3, "logging_steps": 10}
    settings |= {"eval_strategy": "no", "save_strategy": "no"}
    splits, processor = {"train": pairs, "validation": None}, tiny_processor()
    trainer = make_trainer(model, splits, processor, tmp_path, **settings)
    trainer.data_collator.vision_features, trainer.data_collator.text_features = pictures, texts
    trainer.train()
    assert trainer.state.log_history[0]["chance_matching"] == pytest.approx(math.log(2))
    assert losses(trainer)[0] == pytest.approx(0.69, abs=0.05)  # knows nothing
    assert losses(trainer)[-1] < 0.1
    features = {"vision_features": pictures, "text_features": texts}
    alone, ranked = (
        evaluate_retrieval(model, processor, pairs, ranking_top_k=top_k, disable_tqdm=True, **features)
        for top_k in (0, PAIRS)
    )
    for direction in ("t2i", "i2t"):
        assert alone[f"{direction}_recall@1"] < 15  # by chance 3
        assert ranked[f"{direction}_recall@1"] > 90
