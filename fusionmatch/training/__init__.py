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

"""Training: arguments, trainer, adapters, cached features of frozen towers."""

from .adapters import describe_trainable, embed_mixed_batch, freeze_towers, lora_config, unwrap_model
from .arguments import FusionMatchTrainingArguments
from .features import TowerFeatureCache
from .guards import TrainingGuard, TrainingStoppedError
from .trainer import FusionMatchTrainer


__all__ = [
    "FusionMatchTrainer",
    "FusionMatchTrainingArguments",
    "TowerFeatureCache",
    "TrainingGuard",
    "TrainingStoppedError",
    "describe_trainable",
    "embed_mixed_batch",
    "freeze_towers",
    "lora_config",
    "unwrap_model",
]
