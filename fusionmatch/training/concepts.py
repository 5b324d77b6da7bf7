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
"""Gives a base the concepts of a catalogue."""

from typing import Any

import torch

from ..catalogue import ConceptBank
from ..evaluation.inputs import text_inputs
from ..modeling_fusionmatch import FusionMatchModel


@torch.no_grad()
def attach_concepts(model: FusionMatchModel, processor: Any, bank: ConceptBank) -> FusionMatchModel:
    """
    Gives a model the concepts of a catalogue, with the text tower's pooled features of each word as its vector (CVSE
    takes GloVe's). The consensus branch is new then, and has to be trained.

    Args:
        model ([`FusionMatchModel`]):
            The base; changed in place.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        bank ([`~fusionmatch.catalogue.ConceptBank`]):
            The concepts.

    Returns:
        [`FusionMatchModel`]: the same model.

    Raises:
        `ValueError`: the model has no fusion branch.
    """
    was_training = model.training
    model.eval()
    inputs = text_inputs(processor, bank.words, model.config.text_config)
    features = model.encode_tower(**{name: tensor.to(model.device) for name, tensor in inputs.items()})
    vectors = torch.nn.functional.normalize(features.pooled.float(), dim=1)
    # Words share most of their direction; what tells them apart is the rest.
    vectors = torch.nn.functional.normalize(vectors - vectors.mean(dim=0), dim=1)
    model.set_concepts(bank.words, torch.from_numpy(bank.graph()).float(), vectors)
    return model.train(was_training)
