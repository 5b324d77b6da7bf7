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
"""
Peers of `ablation.py`: heads and losses of others on the same cached features of the same frozen towers, with the
same pictures and views, batch, steps, optimizer and choice of the best epoch. Each takes one caption a picture at a
time, as its authors do: the rows of ours that do so too are those to compare it with where the number of captions is
not the question.
"""

import copy
import time
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from sentence_transformers.base.modules import Dense
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from torch.utils.data import DataLoader
from transformers import BertConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel, ViTConfig, set_seed
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fusionmatch import FusionMatchConfig, FusionMatchModel
from fusionmatch.catalogue.concepts import build_concepts
from fusionmatch.consensus_fusionmatch import FusionMatchConceptBank
from fusionmatch.evaluation.retrieval import CatalogueEmbeddings, unique_texts
from fusionmatch.heads_fusionmatch import l2_normalize
from fusionmatch.losses_fusionmatch import triplet_loss
from fusionmatch.outputs_fusionmatch import FusionMatchTowerFeatures
from fusionmatch.training import TowerFeatureCache
from fusionmatch.training.annealing import annealing_factor
from fusionmatch.training.concepts import attach_concepts
from fusionmatch.training.data import FusionMatchCollator, PairDataset


if TYPE_CHECKING:
    from ablation import Bench

SIZE = 1024  # of the shared space, as VSE++, VSE-infinity and CVSE have it
IMAGE_SIZE, TEXT_SIZE = 1280, 384  # of the starter's towers


class Peer(nn.Module):
    """Two heads on tower features, and a loss on a batch of pairs."""

    learning_rate = 1e-3
    # Whether it reads the features of the tokens, besides the pooled ones.
    tokens = False

    def image(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        """Embeddings (images, size), unit length."""
        raise NotImplementedError

    def text(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        """Embeddings (texts, size), unit length."""
        raise NotImplementedError

    def loss(self, images: FusionMatchTowerFeatures, texts: FusionMatchTowerFeatures, epoch: int) -> torch.Tensor:
        """Of as many pictures as texts."""
        return triplet_loss(self.text(texts) @ self.image(images).t(), margin=0.2)


class VSEPlusPlus(Peer):
    """arXiv 1707.05612: mean-pooled features, one linear map each, the hardest negative alone."""

    def __init__(self, bench: "Bench", processor: Any) -> None:
        super().__init__()
        self.image_map, self.text_map = nn.Linear(IMAGE_SIZE, SIZE), nn.Linear(TEXT_SIZE, SIZE)

    def image(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return l2_normalize(self.image_map(features.pooled))

    def text(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return l2_normalize(self.text_map(features.pooled))


class GeneralisedPooling(nn.Module):
    """GPO, arXiv 2011.04305, section 3: each dimension's values in order, weighted by place; a GRU gives weights."""

    def __init__(self, positions: int = 32, hidden: int = 32) -> None:
        super().__init__()
        self.positions = positions
        self.gru = nn.GRU(positions, hidden, batch_first=True, bidirectional=True)
        self.map = nn.Linear(hidden, 1, bias=False)

    def _weights(self, length: int) -> torch.Tensor:
        place = torch.arange(length)[:, None]
        rate = torch.exp(-torch.arange(0, self.positions, 2) * (torch.log(torch.tensor(1e4)) / self.positions))
        encoding = torch.cat([torch.sin(place * rate), torch.cos(place * rate)], dim=1)
        forward, backward = self.gru(encoding[None])[0][0].chunk(2, dim=-1)
        return (self.map((forward + backward) / 2).squeeze(-1) / 0.1).softmax(dim=0)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if mask is None:
            return torch.einsum(
                "k,bkc->bc", self._weights(tokens.shape[1]), tokens.sort(dim=1, descending=True).values
            )
        lengths = mask.sum(dim=1)
        ordered = tokens.masked_fill(mask[:, :, None] == 0, -1e4).sort(dim=1, descending=True).values
        ordered = ordered.masked_fill(mask[:, :, None] == 0, 0)
        table = torch.zeros(int(lengths.max()) + 1, tokens.shape[1])
        for length in lengths.unique().tolist():
            table = table.index_copy(
                0,
                torch.tensor([length]),
                nn.functional.pad(self._weights(length), (0, tokens.shape[1] - length))[None],
            )
        return torch.einsum("bk,bkc->bc", table[lengths], ordered)


class VSEInfinity(Peer):
    """arXiv 2011.04305: GPO over tokens, an MLP beside the picture's linear map, an epoch of warm-up."""

    tokens = True

    def __init__(self, bench: "Bench", processor: Any) -> None:
        super().__init__()
        self.image_map, self.text_map = nn.Linear(IMAGE_SIZE, SIZE), nn.Linear(TEXT_SIZE, SIZE)
        self.image_mlp = nn.Sequential(nn.Linear(IMAGE_SIZE, SIZE // 2), nn.ReLU(), nn.Linear(SIZE // 2, SIZE))
        self.image_pool, self.text_pool = GeneralisedPooling(), GeneralisedPooling()

    def image(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        tokens = features.levels[0]
        return l2_normalize(self.image_pool(self.image_map(tokens) + self.image_mlp(tokens), None))

    def text(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return l2_normalize(self.text_pool(self.text_map(features.levels[0]), features.attention_mask))

    def loss(self, images: FusionMatchTowerFeatures, texts: FusionMatchTowerFeatures, epoch: int) -> torch.Tensor:
        return triplet_loss(self.text(texts) @ self.image(images).t(), margin=0.2, hardest=epoch > 0)


class MultiplicativeAttention(nn.Module):
    """CVSE's self-attention: tokens weighted by the product of their own map with that of their mean."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.own, self.mean = nn.Linear(size, size), nn.Linear(size, size)
        self.score = nn.Linear(size, 1)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        weights = torch.ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
        mean = (tokens * weights[:, :, None]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
        scores = self.score(torch.tanh(self.own(tokens)) * torch.tanh(self.mean(mean))[:, None]).squeeze(-1)
        return torch.einsum("bk,bkc->bc", scores.masked_fill(weights == 0, -1e4).softmax(dim=1), tokens)


class CVSE(Peer):
    """
    arXiv 2007.08883: instance by multiplicative attention, consensus over the graph of concepts, the two mixed 3 to 1
    (the authors' code: 0.85 to 0.15 for Flickr30k); losses weighted 3, 5, 1, 2. The same concepts as in our rows;
    without the authors' labels of concepts, whose completion looks at the test captions, and scored by the mixture
    alone.
    """

    tokens = True

    def __init__(self, bench: "Bench", processor: Any) -> None:
        super().__init__()
        self.image_map, self.text_map = nn.Linear(IMAGE_SIZE, SIZE), nn.Linear(TEXT_SIZE, SIZE)
        self.image_attention, self.text_attention = MultiplicativeAttention(SIZE), MultiplicativeAttention(SIZE)
        donor = FusionMatchModel.from_pretrained(bench.base)
        attach_concepts(donor, processor, build_concepts(bench.splits["train"], 300, disable_tqdm=True))
        config = copy.deepcopy(donor.config)
        config.hidden_size = SIZE
        self.bank = FusionMatchConceptBank(config)
        self.bank.vectors.copy_(donor.concept_bank.vectors)
        self.bank.graph.copy_(donor.concept_bank.graph)
        self.image_query, self.text_query = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def _all(self, side: str, features: FusionMatchTowerFeatures) -> tuple[torch.Tensor, ...]:
        parts = (getattr(self, f"{side}_{part}") for part in ("map", "attention", "query"))
        to_space, attention, query = parts
        instance = l2_normalize(attention(to_space(features.levels[0]), features.attention_mask))
        concepts = self.bank()
        log_probs = (10 * query(instance) @ concepts.t()).log_softmax(dim=1)
        consensus = l2_normalize(log_probs.exp() @ concepts)
        return l2_normalize(0.75 * instance + 0.25 * consensus), instance, consensus, log_probs

    def image(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return self._all("image", features)[0]

    def text(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return self._all("text", features)[0]

    def loss(self, images: FusionMatchTowerFeatures, texts: FusionMatchTowerFeatures, epoch: int) -> torch.Tensor:
        image, text = self._all("image", images), self._all("text", texts)
        total = sum(
            weight * triplet_loss(text[i] @ image[i].t(), margin=0.2) for i, weight in enumerate((3.0, 5.0, 1.0))
        )
        return total + 2.0 * nn.functional.kl_div(image[3], text[3], log_target=True, reduction="batchmean")


class SentenceTransformers(Peer):
    """
    sentence-transformers: a Dense module each and MultipleNegativesRankingLoss, its own classes and defaults, which
    look for the picture of a text alone.
    """

    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, bench: "Bench", processor: Any) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(
            {
                "image": Dense(IMAGE_SIZE, SIZE, activation_function=nn.Identity()),
                "text": Dense(TEXT_SIZE, SIZE, activation_function=nn.Identity()),
            }
        )
        self.criterion = MultipleNegativesRankingLoss(model=None, **self.options)

    def image(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return l2_normalize(self.heads["image"]({"sentence_embedding": features.pooled})["sentence_embedding"])

    def text(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return l2_normalize(self.heads["text"]({"sentence_embedding": features.pooled})["sentence_embedding"])

    def loss(self, images: FusionMatchTowerFeatures, texts: FusionMatchTowerFeatures, epoch: int) -> torch.Tensor:
        return self.criterion.compute_loss_from_embeddings([self.text(texts), self.image(images)], None)


class SentenceTransformersBothWays(SentenceTransformers):
    """The same, which looks for the text of a picture as well, as CLIP does."""

    options: ClassVar[dict[str, Any]] = {
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    }


class CachedTower(nn.Module):
    """Stands in for a tower of transformers' dual encoder: gives cached pooled features as that tower's output."""

    def forward(self, pixel_values: Any = None, input_ids: Any = None, **kwargs: Any) -> BaseModelOutputWithPooling:
        pooled = input_ids if pixel_values is None else pixel_values
        return BaseModelOutputWithPooling(last_hidden_state=pooled[:, None], pooler_output=pooled)


class DualEncoder(Peer):
    """transformers' VisionTextDualEncoderModel: its projections, scale and loss, on cached features of its towers."""

    def __init__(self, bench: "Bench", processor: Any) -> None:
        super().__init__()
        # The configurations only give sizes; the towers are replaced.
        sizes = {"num_hidden_layers": 0, "num_attention_heads": 1, "intermediate_size": 1}
        config = VisionTextDualEncoderConfig.from_vision_text_configs(
            ViTConfig(hidden_size=IMAGE_SIZE, **sizes),
            BertConfig(hidden_size=TEXT_SIZE, vocab_size=1, **sizes),
            projection_dim=SIZE,
        )
        self.model = VisionTextDualEncoderModel(config)
        self.model.vision_model, self.model.text_model = CachedTower(), CachedTower()

    def image(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return l2_normalize(self.model.get_image_features(pixel_values=features.pooled).pooler_output)

    def text(self, features: FusionMatchTowerFeatures) -> torch.Tensor:
        return l2_normalize(self.model.get_text_features(input_ids=features.pooled).pooler_output)

    def loss(self, images: FusionMatchTowerFeatures, texts: FusionMatchTowerFeatures, epoch: int) -> torch.Tensor:
        return self.model(input_ids=texts.pooled, pixel_values=images.pooled, return_loss=True).loss


PEERS: dict[str, type[Peer]] = {
    "VSE++": VSEPlusPlus,
    "VSE-infinity": VSEInfinity,
    "CVSE": CVSE,
    "sentence-transformers": SentenceTransformers,
    "sentence-transformers, both ways": SentenceTransformersBothWays,
    "VisionTextDualEncoder": DualEncoder,
}


@torch.no_grad()
def embed(peer: Peer, split: Any, features: dict[str, TowerFeatureCache]) -> CatalogueEmbeddings:
    """A split as a peer sees it."""
    peer.eval()

    def all_rows(cache: TowerFeatureCache, encode: Any) -> torch.Tensor:
        return torch.cat([encode(cache(range(i, min(i + 256, len(cache))))) for i in range(0, len(cache), 256)])

    texts, text_products = unique_texts(split)
    return CatalogueEmbeddings(
        all_rows(features["vision_features"], peer.image),
        all_rows(features["text_features"], peer.text),
        list(split["product"]),
        text_products,
        texts,
    )


def train_peer(
    kind: type[Peer], bench: "Bench", processor: Any, seed: int, **settings: Any
) -> tuple[dict[str, Any], CatalogueEmbeddings]:
    """Trains a peer as the recipe says and measures its best epoch on the test split."""
    recipe = bench.training | {"learning_rate": kind.learning_rate} | settings
    processor.tokenizer.model_max_length = recipe["max_text_length"]
    towers = FusionMatchModel.from_pretrained(bench.base)
    config: FusionMatchConfig = towers.config
    levels = [-1] if kind.tokens else []
    config.vision_feature_levels, config.text_feature_levels = levels, levels

    def cached(split: str, texts: list[str], views: int) -> dict[str, TowerFeatureCache]:
        arguments = (towers, processor)
        return {
            "vision_features": TowerFeatureCache.for_images(
                *arguments, bench.splits[split], bench.features, views=views
            ),
            "text_features": TowerFeatureCache.for_texts(*arguments, texts, bench.features),
        }

    train = PairDataset(bench.splits["train"], 1, recipe["image_views"])
    features = {name: cached(name, unique_texts(bench.splits[name])[0], 1) for name in ("validation", "test")}
    features["train"] = cached("train", [text for row in train.texts for text in row], recipe["image_views"])
    set_seed(seed)
    peer = kind(bench, processor)
    matrices = [p for p in peer.parameters() if p.ndim >= 2]
    others = [p for p in peer.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe["learning_rate"])
    batch_size, epochs = recipe["per_device_train_batch_size"], recipe["num_train_epochs"]
    total = epochs * (len(train) // batch_size)
    warmup = -(-total // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: annealing_factor(step, total_steps=total, warmup_steps=warmup)
    )
    loader = DataLoader(
        train,
        batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=FusionMatchCollator(processor, config.text_config, **features["train"]),
        generator=torch.Generator().manual_seed(seed),
    )
    best, kept, start = -1.0, None, time.perf_counter()
    for epoch in range(epochs):
        train.set_epoch(epoch)
        peer.train()
        for batch in loader:
            loss = peer.loss(batch["vision_features"], batch["text_features"], epoch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        rsum = embed(peer, bench.splits["validation"], features["validation"]).metrics()["rsum"]
        if rsum > best:
            best, kept = rsum, copy.deepcopy(peer.state_dict())
    seconds = time.perf_counter() - start
    peer.load_state_dict(kept)
    numbers = {
        "trainable": sum(p.numel() for p in peer.parameters() if p.requires_grad),
        "seconds": seconds,
        "gates": [],
        "validation_rsum": best,
    }
    return numbers, embed(peer, bench.splits["test"], features["test"])
