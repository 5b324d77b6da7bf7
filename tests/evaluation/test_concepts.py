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

import pytest
import torch

from fusionmatch.evaluation.concepts import r_precision


def test_r_precision_by_hand():
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).bool()
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.0], [0.2, 0.0, 0.3, 0.1], [1.0, 0.0, 0.0, 0.0]])
    assert r_precision(scores, labels) == pytest.approx((50 + 100) / 2)
    assert r_precision(torch.tensor([4.0, 3.0, 2.0, 1.0]), labels) == pytest.approx((100 + 0) / 2)
