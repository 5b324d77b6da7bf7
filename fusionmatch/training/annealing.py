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
"""Learning rate: linear warm-up, then cosine annealing."""

import math

import torch


def annealing_factor(step: int, total_steps: int, warmup_steps: int = 0, floor: float = 0.0, cycles: int = 1) -> float:
    r"""
    Share of the peak learning rate at an optimizer step (arXiv 1608.03983, equation 5, after a linear warm-up). It is
    a function of the step alone: nothing has to be kept for a resumed training, and all processes agree.

    In a cycle of T steps, step t has $f + (1 - f) (1 + \cos(\pi t / T)) / 2$. The floor is
    met at `total_steps`, which no training step has: the last one is a step before it.

    Args:
        step (`int`):
            Optimizer steps done, from 0.
        total_steps (`int`):
            Optimizer steps of the whole training.
        warmup_steps (`int`, *optional*, defaults to 0):
            Steps of the warm-up; step s of it has the share (s + 1) / (warmup_steps + 1), so that the first is not 0.
        floor (`float`, *optional*, defaults to 0.0):
            Share f that is annealed to, in [0, 1).
        cycles (`int`, *optional*, defaults to 1):
            Cycles of equal length, each beginning with a restart.

    Returns:
        `float`: the share, in [0, 1].

    Raises:
        `ValueError`: a value outside its range, or more warm-up and cycles than steps.
    """
    if not 0 <= floor < 1:
        raise ValueError(f"`floor` must be a share of the peak in [0, 1), got {floor}.")
    if cycles < 1 or not 0 <= warmup_steps <= total_steps or total_steps - warmup_steps < cycles:
        raise ValueError(
            f"{total_steps} steps cannot hold {warmup_steps} of warm-up and {cycles} cycles of annealing. Train "
            "longer, warm up less, or restart less often."
        )
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    length = (total_steps - warmup_steps) / cycles
    cycle = min(int((step - warmup_steps) / length), cycles - 1)
    done = min(1.0, (step - warmup_steps) / length - cycle)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2


def take_rates_from(scheduler: torch.optim.lr_scheduler.LambdaLR, peaks: list[float]) -> None:
    """
    Sets an optimizer's rates to those of its schedule. A resumed optimizer brings the rate that the next step had in
    the run before; where this run is longer or has other rates, the step has another one.

    Args:
        scheduler (`torch.optim.lr_scheduler.LambdaLR`):
            The schedule, as it was loaded.
        peaks (`list[float]`):
            The rate of each group of parameters that the schedule gives shares of.
    """
    scheduler.base_lrs = list(peaks)
    groups = scheduler.optimizer.param_groups
    for group, peak, factor in zip(groups, peaks, scheduler.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = peak, peak * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in groups]
