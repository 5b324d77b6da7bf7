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

"""Batches gathered from all processes."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist


T = TypeVar("T")


def gather_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    """
    Concatenates a tensor of all processes along its first dimension, in the order of the ranks; gradients flow back to
    the process that a row came from. Numbers of rows may differ. With one process it is the tensor itself.

    When every process computes the same loss of the gathered tensor, the average of gradients that
    `DistributedDataParallel` takes is the gradient of that loss: the backward of the gathering sums over the processes
    what the average divides by their number.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    rows = torch.zeros(dist.get_world_size(), dtype=torch.long, device=tensor.device)
    rows[dist.get_rank()] = len(tensor)
    dist.all_reduce(rows)
    most = int(rows.max())
    padded = torch.cat([tensor, tensor.new_zeros(most - len(tensor), *tensor.shape[1:])])
    if tensor.is_floating_point() and tensor.requires_grad:
        gathered = torch.distributed.nn.functional.all_gather(padded)
    else:
        gathered = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(gathered, padded.contiguous())
    return torch.cat([part[:length] for part, length in zip(gathered, rows.tolist(), strict=True)])


def from_main_process(compute: Callable[[], T]) -> T:
    """What the main process computes, given to all; it is computed there alone."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return compute()
    box = [compute() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def mean_value(loss: torch.Tensor) -> torch.Tensor:
    """
    A loss that each process computes of its own part of the batch, with the mean over all processes as its value and
    its own gradient: `DistributedDataParallel` averages the gradients, and all processes see the same number.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return loss
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return loss + (mean / dist.get_world_size() - loss.detach())
