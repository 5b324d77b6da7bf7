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
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fusionmatch.training.annealing import annealing_factor
from fusionmatch.training.weighting import SCHEMES


ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "distributed_script.py"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(command, shop, folder, mini_batch_size=None):
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*command, str(SCRIPT), str(shop), str(folder), "16", str(mini_batch_size or 0)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        cwd=folder,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("rank*.json"))]


def rates_of_two_epochs(report: dict[str, Any]) -> list[float]:
    """What the script's run of two epochs is to have: of all processes' batches two make a step."""
    batches = report["rows"] // report["batch"]
    assert batches % 2 == 1 and batches > 1
    steps = 2 * math.ceil(batches / 2)  # the last batch of an epoch is a step of its own
    return [1e-3 * annealing_factor(step, steps, math.ceil(0.25 * steps), floor=0.1) for step in range(steps)]


@pytest.fixture(scope="module")
def one_process(shop, tmp_path_factory):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    (report,) = launch(command, shop, tmp_path_factory.mktemp("one") / "run")
    return report


@pytest.mark.parametrize("mini_batch_size", [None, 3])
def test_accelerate_launch_with_two_processes_equals_one(one_process, shop, tmp_path, mini_batch_size):
    # `accelerate launch --cpu --num_processes 2` starts one process without a word; this form starts two on a CPU.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--main_process_port", str(free_port())]
    reports = launch(command, shop, tmp_path / "two", mini_batch_size)
    assert len(reports) == 2
    assert reports[0].keys() == (one_process.keys() if mini_batch_size is None else {"no_duplicates", *SCHEMES})
    for report in reports:
        if mini_batch_size is None:
            assert report["two_epochs"]["rates"] == pytest.approx(rates_of_two_epochs(report["two_epochs"]))
        for name, found in report.items():
            expected = one_process[name]
            assert (expected["world_size"], found["world_size"]) == (1, 2)
            assert found["ignored"] == expected["ignored"]
            assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
            assert found["rates"] == pytest.approx(expected["rates"], rel=1e-6)
            assert found["weights"] == pytest.approx(expected["weights"], abs=1e-5)
        # Their halves are in two processes as well.
        assert sum(report["hard_negatives" if mini_batch_size is None else "unit"]["ignored"]) > 50


def test_the_schedule_is_warm_up_and_cosine(one_process):
    rates = one_process["hard_negatives"]["rates"]
    assert len(rates) == 20
    assert max(rates) == pytest.approx(1e-3, rel=0.02)
    assert rates.index(max(rates)) <= 2
    assert rates[-1] < 2e-5


def test_the_schedule_of_epochs_counts_steps_of_several_batches(one_process: dict[str, Any]) -> None:
    report = one_process["two_epochs"]
    assert report["rates"] == pytest.approx(rates_of_two_epochs(report))


READ = """if True:
    import sys, time
    from pathlib import Path
    from types import SimpleNamespace
    from fusionmatch import FusionMatchTrainingArguments
    from fusionmatch.commands.fitting import fit_and_report
    folder = Path(sys.argv[1])
    args = FusionMatchTrainingArguments(str(folder / "run"), use_cpu=True)
    def read():
        if args.process_index == 0:
            time.sleep(1)
            (folder / "downloaded").touch()
        (folder / f"rank{args.process_index}.json").write_text(str((folder / "downloaded").exists()).lower())
        raise InterruptedError  # seen enough
    try:
        fit_and_report("adapter", None, SimpleNamespace(download_images=True, read=read), args, None)
    except InterruptedError:
        pass
"""


def test_pictures_by_url_are_downloaded_by_one_process_first(tmp_path):
    script = tmp_path / "read.py"
    script.write_text(READ)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(
        [*command, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)] == [True, True]
