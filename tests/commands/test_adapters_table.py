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
"""The table of what trains."""

import re
from collections import Counter

import pytest
from safetensors.torch import load_file

from fusionmatch.commands import main
from fusionmatch.training import FusionMatchTrainer

from .conftest import ADAPT


HEADS = ("vision_head", "text_head", "vision_fusion", "text_fusion", "similarity")
# Two blocks a tower, in each four projections from 32 to 32 channels and an MLP over 37: two matrices of rank 8 for
# each layer; a magnitude a channel.
LORA = 2 * 8 * (4 * (32 + 32) + 2 * (32 + 37))
DORA = LORA + 2 * (4 * 32 + 37 + 32)


@pytest.mark.parametrize(
    ("preset", "added", "carried"),
    [
        ("fast", 0, f"The adapter carries {', '.join(HEADS)} whole.\n"),
        ("lora", LORA, f"The adapter carries {', '.join(HEADS)} whole, and LoRA for the rest of what trains.\n"),
        ("dora", DORA, f"The adapter carries {', '.join(HEADS)} whole, and LoRA for the rest of what trains.\n"),
        ("full", 0, ""),
    ],
)
def test_what_trains_is_said_before_the_training(preset, added, carried, base, shop, tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise ValueError("The training begins.")

    monkeypatch.setattr(FusionMatchTrainer, "train", stop)
    files = ["--model_name_or_path", str(base), "--catalogue", str(shop), "--output_dir", str(tmp_path / "run")]
    assert main(["adapt", *files, "--preset", preset, *ADAPT]) == 1
    shown, errors = capsys.readouterr()
    assert "The training begins." in errors

    sizes = Counter()
    for name, tensor in load_file(base / "model.safetensors").items():
        sizes[name.split(".")[0]] += tensor.numel()
    expected = {name: (sizes[name], sizes[name]) for name in HEADS}
    for tower in ("vision_model", "text_model"):
        trained = sizes[tower] if preset == "full" else added
        expected[tower] = trained, sizes[tower] + added
    expected["all"] = tuple(sum(row[i] for row in expected.values()) for i in (0, 1))

    head, table = shown.split("module                 trained            of   share\n")
    assert "pictures of" in head
    rows = re.findall(r"^(\w+) +([\d,]+) +([\d,]+) +([\d.]+)%$", table, re.MULTILINE)
    found = {name: tuple(int(count.replace(",", "")) for count in counts) for name, *counts, _ in rows}
    assert found == expected
    shares = {name: float(share) for name, _, _, share in rows}
    assert shares == {name: round(100 * some / every, 1) for name, (some, every) in expected.items()}
    assert table.split("%\n")[-1] == f"{carried}\n"
