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
"""Features of frozen towers, computed once and kept on disk."""

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..evaluation.inputs import image_inputs, text_inputs, text_limit
from ..loading import fingerprint
from ..modeling_fusionmatch import FusionMatchModel
from ..outputs_fusionmatch import FusionMatchTowerFeatures
from .checkpoints import check_room, words_for_a_full_disk
from .data import picture_view


# Rows of one safetensors file: small enough to be written in one go, large enough that there are few files.
SHARD_ROWS = 1024


def _digest(*parts: Any) -> "hashlib._Hash":
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"\0")
    return digest


def _image_keys(dataset: datasets.Dataset) -> list[str]:
    """A key for the content of each picture: the stored bytes, or a file's path, size and time of change."""
    keys = []
    for item in dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False)):
        image = item["image"]
        if image["bytes"] is not None:
            keys.append(_digest(image["bytes"]).hexdigest())
        else:
            stat = Path(image["path"]).stat()
            keys.append(f"{image['path']}:{stat.st_size}:{stat.st_mtime_ns}")
    return keys


def _tokenizer_key(tokenizer: Any) -> str:
    """What a tokenizer does to a text. How it padded and cut its last batch, which is kept with it, does not count."""
    if not tokenizer.is_fast:
        return str(sorted(tokenizer.get_vocab().items()))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({name: part for name, part in state.items() if name not in ("padding", "truncation")})


class TowerFeatureCache:
    r"""
    Features of one frozen tower for a list of inputs, kept as safetensors files in a folder named by a digest of
    weights, processor, settings and inputs: whatever changes, the key changes with it. Pooled vectors and each level
    have files of their own, so that models which read other levels share what is there. A cut-off computation goes on
    where it stopped.

    Level tokens are kept in half precision (relative error about 5e-4), pooled vectors in full.

    Args:
        folder (`Path`):
            Folder of the finished cache.
        rows (`int`):
            Number of inputs.
        levels (`Sequence[int]`):
            The levels to read, in this order.
        places (`Sequence[int]`, *optional*):
            Where each input lies among those of the folder, of which `rows` counts all; by default in its own place.
    """

    def __init__(self, folder: Path, rows: int, levels: Sequence[int], places: Sequence[int] | None = None) -> None:
        self.folder = folder
        self.rows = rows if places is None else len(places)
        self._places = None if places is None else torch.tensor(places)
        self.num_levels = len(levels)
        with contextlib.ExitStack() as stack:
            # The tensors are views of the memory-mapped files: rows are read from disk when they are used.
            self._shards = []
            for paths in _shard_paths(folder, rows, levels):
                tensors = {}
                for path in paths.values():
                    shard = stack.enter_context(safe_open(path, framework="pt"))
                    tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118
                # By position: a model may read one level twice.
                kept = {name: tensors[name] for name in ("pooled", "offsets") if name in tensors}
                self._shards.append(kept | {f"level_{i}": tensors[str(level)] for i, level in enumerate(levels)})

    def __len__(self) -> int:
        return self.rows

    def __call__(self, indices: Sequence[int]) -> FusionMatchTowerFeatures:
        """The features of the inputs with these indices as one batch, padded where lengths differ."""
        index = torch.tensor(list(indices))
        outside = index[(index < 0) | (index >= self.rows)]
        if len(outside):
            raise IndexError(f"The feature cache has {self.rows} rows, got index {outside[0]}.")
        if self._places is not None:
            index = self._places[index]
        number, row = index // SHARD_ROWS, index % SHARD_ROWS
        # A shard, and which places of the batch its rows go to.
        parts = [(self._shards[n], (number == n).nonzero().flatten()) for n in number.unique().tolist()]
        first, _ = parts[0]
        pooled = torch.empty(len(index), first["pooled"].shape[1])
        for shard, places in parts:
            pooled[places] = shard["pooled"][row[places]]
        if not self.is_text or not self.num_levels:
            levels = [torch.empty(len(index), *first[f"level_{i}"].shape[1:]) for i in range(self.num_levels)]
            for shard, places in parts:
                for i, level in enumerate(levels):
                    level[places] = shard[f"level_{i}"][row[places]].float()
            return FusionMatchTowerFeatures(pooled=pooled, levels=tuple(levels))
        starts, lengths = torch.empty_like(index), torch.empty_like(index)
        for shard, places in parts:
            starts[places] = shard["offsets"][row[places]]
            lengths[places] = shard["offsets"][row[places] + 1] - starts[places]
        tokens = torch.arange(int(lengths.max()))
        mask = tokens[None, :] < lengths[:, None]
        levels = [torch.zeros(*mask.shape, first[f"level_{i}"].shape[1]) for i in range(self.num_levels)]
        for shard, places in parts:
            rows, columns = mask[places].nonzero().unbind(dim=1)
            rows = places[rows]
            for i, level in enumerate(levels):
                level[rows, columns] = shard[f"level_{i}"][starts[rows] + columns].float()
        return FusionMatchTowerFeatures(pooled=pooled, levels=tuple(levels), attention_mask=mask.long())

    @property
    def is_text(self) -> bool:
        """Whether the inputs are texts, whose lengths differ."""
        return "offsets" in self._shards[0]

    @classmethod
    def for_images(
        cls,
        model: FusionMatchModel,
        processor: Any,
        dataset: datasets.Dataset,
        cache_dir: str | Path,
        batch_size: int = 32,
        disable_tqdm: bool = False,
        views: int = 1,
    ) -> "TowerFeatureCache":
        """
        Loads or computes the vision tower's features of a dataset's `image` column, `views` of each picture
        ([`~fusionmatch.training.data.picture_view`]) one after the other.
        """
        config = model.config
        key = _digest(
            # Counted up when the pixels of a picture are made in another way.
            "images 2",
            model.config.vision_config.to_json_string(use_diff=False),
            fingerprint(model.vision_model),
            json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str),
            config.vision_pooling,
            config.max_level_tokens,
            *([f"{views} views"] if views > 1 else []),
            *_image_keys(dataset),
        ).hexdigest()

        def batches(start: int, end: int) -> Iterator[dict[str, torch.Tensor]]:
            for first in range(start, end, batch_size):
                rows = [divmod(i, views) for i in range(first, min(first + batch_size, end))]
                images = dataset[rows[0][0] : rows[-1][0] + 1]["image"]
                chosen = [picture_view(images[row - rows[0][0]], row, view) for row, view in rows]
                yield {"pixel_values": image_inputs(processor, chosen)}

        return cls._load_or_compute(
            model,
            Path(cache_dir) / key,
            views * len(dataset),
            config.vision_feature_levels,
            batches,
            "Vision tower, once",
            disable_tqdm,
        )

    @classmethod
    def for_texts(
        cls,
        model: FusionMatchModel,
        processor: Any,
        texts: Sequence[str],
        cache_dir: str | Path,
        batch_size: int = 128,
        disable_tqdm: bool = False,
    ) -> "TowerFeatureCache":
        """
        Loads or computes the text tower's features of a list of texts. Each is kept once, whatever the list's order,
        so that other lists of the same texts share them; texts of a length go through the tower together.
        """
        config = model.config
        different = sorted(set(texts), key=lambda text: (len(text), text))
        place = {text: i for i, text in enumerate(different)}
        tokenizer = processor.tokenizer
        key = _digest(
            "texts",
            model.config.text_config.to_json_string(use_diff=False),
            fingerprint(model.text_model),
            _tokenizer_key(tokenizer),
            text_limit(processor, config.text_config),
            config.text_pooling,
            *different,
        ).hexdigest()

        def batches(start: int, end: int) -> Iterator[dict[str, torch.Tensor]]:
            for first in range(start, end, batch_size):
                yield text_inputs(processor, different[first : min(first + batch_size, end)], config.text_config)

        return cls._load_or_compute(
            model,
            Path(cache_dir) / key,
            len(different),
            config.text_feature_levels,
            batches,
            "Text tower, once",
            disable_tqdm,
            [place[text] for text in texts],
        )

    @classmethod
    def _load_or_compute(
        cls,
        model: FusionMatchModel,
        folder: Path,
        rows: int,
        levels: Sequence[int],
        batches: Any,
        description: str,
        disable_tqdm: bool,
        places: Sequence[int] | None = None,
    ) -> "TowerFeatureCache":
        shards = _shard_paths(folder, rows, levels)
        missing = [{name: path for name, path in paths.items() if not path.exists()} for paths in shards]
        if any(missing):
            folder.mkdir(parents=True, exist_ok=True)
            was_training = model.training
            model.eval()
            for path in folder.glob("*.partial"):
                # What a run left that was killed; a shard takes no day to write.
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > 86_400:
                        path.unlink()
            with tqdm(total=rows, desc=description, unit="row", disable=disable_tqdm) as bar:
                for i, paths in enumerate(missing):
                    start, end = i * SHARD_ROWS, min((i + 1) * SHARD_ROWS, rows)
                    if not paths:
                        bar.update(end - start)
                        continue
                    encoded = []
                    for batch in batches(start, end):
                        features = model.encode_tower(
                            **{name: tensor.to(model.device) for name, tensor in batch.items()}
                        )
                        encoded.append(features)
                        bar.update(len(features.pooled))
                    for name, tensors in _pack(encoded, levels).items():
                        if name in paths:
                            # A half-written file never gets the final name; others may be writing the same shard.
                            partial = paths[name].with_suffix(f".{uuid.uuid4().hex}.partial")
                            try:
                                with words_for_a_full_disk(folder, "the cache of tower features"):
                                    save_file(tensors, partial)
                                partial.replace(paths[name])
                            finally:
                                partial.unlink(missing_ok=True)
                    if i == 0:
                        written = sum(path.stat().st_size for path in paths.values())
                        rest = sum(1 for later in missing[1:] if later)
                        check_room(folder, rest * written, "The tower features, computed once (`feature_cache_dir`),")
            model.train(was_training)
        return cls(folder, rows, levels, places)


def _shard_paths(folder: Path, rows: int, levels: Sequence[int]) -> list[dict[str, Path]]:
    names = ["pooled", *(str(level) for level in levels)]
    return [
        {name: folder / f"{i:05d}.{name}.safetensors" for name in names} for i in range(max(1, -(-rows // SHARD_ROWS)))
    ]


def _pack(batches: list[FusionMatchTowerFeatures], levels: Sequence[int]) -> dict[str, dict[str, torch.Tensor]]:
    """The files of one shard: `pooled` (rows, size), and each level (rows, tokens, channels) or, for texts, (all
    tokens, channels); beside the pooled vectors of texts `offsets` (rows + 1,) of where each begins."""
    masks = [batch.attention_mask for batch in batches]
    files = {"pooled": {"pooled": torch.cat([batch.pooled.float().cpu() for batch in batches])}}
    for i, level in enumerate(levels):
        tokens = [
            batch.levels[i] if mask is None else batch.levels[i][mask.bool()]
            for batch, mask in zip(batches, masks, strict=True)
        ]
        files[str(level)] = {str(level): torch.cat([part.half().cpu() for part in tokens])}
    if masks[0] is not None:
        lengths = torch.cat([mask.sum(dim=1).cpu() for mask in masks])
        files["pooled"]["offsets"] = torch.cat([torch.zeros(1, dtype=lengths.dtype), lengths.cumsum(0)])
    return files
