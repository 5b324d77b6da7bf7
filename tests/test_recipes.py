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
"""Every recipe runs as it is shipped, shortened to one epoch on a small base and a small shop."""

from pathlib import Path

import pytest

from fusionmatch.catalogue.sample_shop import write_sample_shop
from fusionmatch.commands import main

from .core.tiny import tiny_concepts, tiny_model, tiny_processor


RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.mark.parametrize(
    "recipe", sorted(RECIPES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_recipe(recipe, tmp_path):
    base = tiny_model(gate_init_value=0.0)
    if "consensus" in recipe.read_text(encoding="utf-8").split("loss_components")[-1]:
        tiny_concepts(base)
    base.config.untrained_modules = ["vision_head", "text_head", "vision_fusion", "text_fusion", "similarity"]
    base.save_pretrained(tmp_path / "base")
    tiny_processor().save_pretrained(tmp_path / "base")
    shop = write_sample_shop(tmp_path / "shop", num_products=60, image_size=48)
    command = ["adapt" if recipe.parent.name == "adapt" else "train", "--config", str(recipe)]
    command += ["--model_name_or_path", str(tmp_path / "base"), "--catalogue", str(shop), "--use_cpu"]
    command += ["--output_dir", str(tmp_path / "out"), "--num_train_epochs", "1", "--disable_tqdm", "True"]
    assert main(command) == 0
    assert (tmp_path / "out" / "report.html").is_file()
