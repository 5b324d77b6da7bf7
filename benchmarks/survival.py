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
Kills `fusionmatch adapt` again and again, each time in another step, starts the same command again until it ends, and
compares it with a run that was left alone: losses of every step and final weights, bit for bit.

    python benchmarks/survival.py --model_name_or_path base --catalogue products.csv --work_dir runs

Further options go to `fusionmatch adapt` as they are. A kill (SIGKILL) comes at a moment drawn from the step after a
checkpoint was begun, every second one from the time that its writing takes.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from fusionmatch.training.checkpoints import what_is_broken


KINDS = {
    "full": ["--preset", "full"],
    "LoRA": ["--preset", "lora"],
    "LoRA, mini-batches": ["--preset", "lora", "--mini_batch_size", "6"],
    "heads on cached towers": ["--preset", "fast"],
}


def start(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        command = [sys.executable, "-m", "fusionmatch", "adapt", *options, "--output_dir", str(folder)]
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def finish(folder: Path, options: list[str]) -> None:
    if start(folder, options).wait() != 0:
        raise SystemExit(f"A run failed; see {folder}.log")


def kill(folder: Path, options: list[str], step: int, delay: float) -> Path:
    """Starts or goes on with a run, and kills it `delay` seconds after it began the checkpoint of a step."""
    process, checkpoint = start(folder, options), folder / f"checkpoint-{step}"
    while not checkpoint.exists():
        if process.poll() is not None:
            raise SystemExit(f"A run ended before step {step}; see {folder}.log")
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.wait()
    return checkpoint


def same_weights(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weights, bit for bit."""
    states = [
        load_file(
            next(path for name in ("adapter_model", "model") if (path := folder / f"{name}.safetensors").exists())
        )
        for folder in (one, other)
    ]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--max_steps", type=int, default=30)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args, options = parser.parse_known_args()
    if not 0 < args.kills < args.max_steps:
        parser.error(f"--kills must lie in 1 to {args.max_steps - 1}, got {args.kills}")
    draw = random.Random(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    options += ["--max_steps", str(args.max_steps), "--save_strategy", "steps", "--save_steps", "1"]
    options += ["--save_total_limit", "2", "--eval_strategy", "no", "--disable_tqdm", "True"]
    print(
        "| what trains | steps | kills | in a checkpoint's writing | losses | weights |\n|---|---:|---:|---:|---|---|"
    )
    for kind in args.kinds:
        whole, killed = (
            args.work_dir / f"{kind.replace(', ', '-').replace(' ', '-')}-{name}" for name in ("whole", "killed")
        )
        for folder in (whole, killed):
            shutil.rmtree(folder, ignore_errors=True)
        finish(whole, [*KINDS[kind], *options])
        written = sorted(path.stat().st_mtime for path in whole.glob("checkpoint-*/trainer_state.json"))
        seconds = written[-1] - written[-2]
        last = max(whole.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
        writing = written[-1] - min(path.stat().st_mtime for path in last.iterdir())
        unfinished = 0
        for i, step in enumerate(sorted(draw.sample(range(1, args.max_steps), args.kills))):
            path = kill(killed, [*KINDS[kind], *options], step, draw.uniform(0, writing if i % 2 == 0 else seconds))
            unfinished += what_is_broken(path) is not None
        finish(killed, [*KINDS[kind], *options])
        logs = [(folder / "losses.jsonl").read_bytes() for folder in (whole, killed)]
        words = ["equal" if same else "DIFFERENT" for same in (logs[0] == logs[1], same_weights(whole, killed))]
        print(f"| {kind} | {args.max_steps} | {args.kills} | {unfinished} | {' | '.join(words)} |", flush=True)


if __name__ == "__main__":
    main()
