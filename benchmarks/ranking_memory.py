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
Time and peak memory of `retrieval_metrics` on n images and n texts. Every size runs in a process of its own, because
peak memory never falls within one.

    python benchmarks/ranking_memory.py --sizes 10000 100000 --limit-gb 4
"""

import argparse
import multiprocessing
import resource
import sys
import time

import torch

from fusionmatch.evaluation.ranking import retrieval_metrics


def measure(size: int, dim: int, threads: int) -> tuple[float, float, float]:
    """Seconds, peak resident memory in GB, and the same before ranking (libraries and float32 embeddings)."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, dim, generator=generator)
    texts = torch.randn(size, dim, generator=generator).mul_(6).add_(images)
    before = peak_gb()
    start = time.perf_counter()
    retrieval_metrics(images, texts, range(size), range(size))
    return time.perf_counter() - start, peak_gb(), before


def peak_gb() -> float:
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 30_000, 100_000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit-gb", type=float, default=4.0, help="exit with 1 if a size needs more")
    arguments = parser.parse_args()

    print(f"{'n':>8} {'seconds':>9} {'peak GB':>8} {'before GB':>10}   (n x n, {arguments.dim} dimensions)")
    over = []
    context = multiprocessing.get_context("spawn")
    for size in arguments.sizes:
        with context.Pool(1) as pool:
            seconds, peak, before = pool.apply(measure, (size, arguments.dim, arguments.threads))
        print(f"{size:>8} {seconds:>9.1f} {peak:>8.2f} {before:>10.2f}", flush=True)
        if peak > arguments.limit_gb:
            over.append(size)
    if over:
        sys.exit(f"More than {arguments.limit_gb} GB at n = {over}.")


if __name__ == "__main__":
    main()
