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
"""A shop, a base and an adapter for the commands, made once."""

import pytest

from fusionmatch.catalogue.sample_shop import write_sample_shop
from fusionmatch.commands import main

from ..core.tiny import tiny_model, tiny_processor


@pytest.fixture(scope="package")
def shop(tmp_path_factory):
    return write_sample_shop(tmp_path_factory.mktemp("shop"), num_products=60, image_size=48)


@pytest.fixture(scope="package")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model(gate_init_value=0.0)
    model.config.untrained_modules = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


ADAPT = ["--num_train_epochs", "2", "--per_device_train_batch_size", "16", "--disable_tqdm", "True", "--use_cpu"]


@pytest.fixture(scope="package")
def adapter(base, shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "adapter"
    command = ["adapt", "--model_name_or_path", str(base), "--catalogue", str(shop), "--output_dir", str(folder)]
    assert main([*command, *ADAPT]) == 0
    return folder


def fails(capsys, argv, *words):
    """The command says in one line what is wrong, and exits with 1."""
    assert main(argv) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"fusionmatch {argv[0]}: ")
    for word in words:
        assert word in message, message
