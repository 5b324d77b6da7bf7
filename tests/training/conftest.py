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
"""A small drawn catalogue and a tiny model for the tests of training."""

import pytest

from fusionmatch.catalogue import load_catalogue
from fusionmatch.catalogue.sample_shop import write_sample_shop

from ..core.tiny import healthy_model, tiny_processor


@pytest.fixture(scope="session")
def shop(tmp_path_factory):
    return write_sample_shop(tmp_path_factory.mktemp("shop"), num_products=60, image_size=48, faults=False)


@pytest.fixture(scope="session")
def splits(shop):
    return load_catalogue(shop)


@pytest.fixture
def processor():
    return tiny_processor()


@pytest.fixture
def model():
    return healthy_model(gate_init_value=0.0)
