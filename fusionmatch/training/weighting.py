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
"""Weights of several losses that follow the losses themselves."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn


class LossWeighting(nn.Module):
    r"""
    Weighs the named components of a loss, anew at every step.

    The weights $w_i$ of the K components have a mean of 1 and are no part of the graph: they steer how strongly each
    component pulls, and are not themselves minimised. With L the losses, $\bar L$ their running means:

    | scheme | weight, before scaling to mean 1 | source |
    |---|---|---|
    | `unit` | 1 | control |
    | `fixed` | given numbers | control; CVSE's are 3, 5, 1, 2 (arXiv 2007.08883) |
    | `random` | softmax of K normal numbers, new at every step | control (arXiv 2111.10603) |
    | `proportional` | $L_i$ | a reading of arXiv 2412.19184: the largest loss pulls most |
    | `inverse` | $1 / L_i$ | a reading of arXiv 2412.19184: all losses count alike |
    | `relative` | $L_i / \bar L_i$ | a reading of arXiv 2412.19184: what is above its own recent level pulls most |
    | `relative_first` | $L_i / L_i(0)$ | the same against the first value: what has fallen least pulls most |
    | `uncertainty` | $e^{-s_i}$, s learned by minimising $\sum_i (e^{-s_i} L_i + s_i) / 2$ | arXiv 1705.07115 |
    | `dwa` | softmax of $\bar L_i(w - 1) / \bar L_i(w - 2) / T$ over windows w of steps | arXiv 1803.10704 |
    | `cov` | standard deviation by mean of $L_i / \bar L_i$, so far | arXiv 2009.01717 |

    Ratios (`relative`, `relative_first`, `dwa`, `cov`) count up to 3: a loss that rises from 0 silences no other.

    arXiv 2412.19184 says that weights follow "the loss value itself" and no formula could be had; hence its readings.

    The state (running means, learned values, step) is in `state_dict()` and makes a resumed training go on bit for
    bit. Each call of `forward` in training mode counts as a step; with gradient accumulation that is a micro-batch.

    Args:
        names (`Sequence[str]`):
            The components, in a fixed order.
        scheme (`str`, *optional*, defaults to `"unit"`):
            One of the above.
        fixed (`Mapping[str, float]`, *optional*):
            Weights of the scheme `fixed`.
        momentum (`float`, *optional*, defaults to 0.99):
            Of the running means of `relative`, in [0, 1).
        window (`int`, *optional*, defaults to 20):
            Steps of a window of `dwa`.
        temperature (`float`, *optional*, defaults to 2.0):
            T of `dwa`.
        seed (`int`, *optional*, defaults to 0):
            Of `random`.

    Raises:
        `ValueError`: an unknown scheme, or settings that do not fit.
    """

    def __init__(
        self,
        names: Sequence[str],
        scheme: str = "unit",
        fixed: Mapping[str, float] | None = None,
        momentum: float = 0.99,
        window: int = 20,
        temperature: float = 2.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if scheme not in SCHEMES:
            raise ValueError(f"There is no weighting {scheme!r}; there are {', '.join(SCHEMES)}.")
        if not names or len(set(names)) < len(names):
            raise ValueError(f"The components need names of their own, got {list(names)}.")
        if scheme == "fixed" and set(fixed or {}) != set(names):
            raise ValueError(f"The weighting `fixed` needs a weight for each of {list(names)}, got {fixed}.")
        if scheme == "fixed" and not (min(fixed.values()) >= 0 < sum(fixed.values())):
            raise ValueError(f"Fixed weights must be 0 or more and not all 0, got {fixed}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must lie in [0, 1), got {momentum}.")
        if window < 1 or temperature <= 0:
            raise ValueError(f"`window` must be at least 1 and `temperature` above 0, got {window} and {temperature}.")
        self.names = tuple(names)
        self.scheme = scheme
        self.fixed = dict(fixed or {})
        self.momentum = momentum
        self.window = window
        self.temperature = temperature
        self.seed = seed
        count = len(self.names)
        # In float64: the sums of a long training stay exact enough to be gone on with.
        self.step = nn.Buffer(torch.zeros((), dtype=torch.long))
        self.first = nn.Buffer(torch.ones(count, dtype=torch.float64))
        self.mean = nn.Buffer(torch.zeros(count, dtype=torch.float64))
        # dwa: sum of the running window, means of the last two. cov: mean and squared deviations of L / mean L.
        self.window_sum = nn.Buffer(torch.zeros(count, dtype=torch.float64))
        self.windows = nn.Buffer(torch.ones(2, count, dtype=torch.float64))
        self.ratio_mean = nn.Buffer(torch.zeros(count, dtype=torch.float64))
        self.ratio_square = nn.Buffer(torch.zeros(count, dtype=torch.float64))
        self.log_variance = nn.Parameter(torch.zeros(count), requires_grad=scheme == "uncertainty")

    def extra_repr(self) -> str:
        return f"{self.scheme}, {', '.join(self.names)}"

    def forward(self, losses: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """
        The weighted sum of the components, and the weights.

        Args:
            losses (`Mapping[str, torch.Tensor]`):
                A scalar for each name.

        Returns:
            `tuple`: the loss to be minimised, and the weights by name, with a mean of 1. In the scheme `uncertainty`
            the loss also holds the term from which the log-variances learn; it does not reach the model.

        Raises:
            `ValueError`: other components than at construction.
            `FloatingPointError`: a component is NaN or infinite; the message names it.
        """
        if set(losses) != set(self.names):
            raise ValueError(f"Expected the components {list(self.names)}, got {list(losses)}.")
        stacked = torch.stack([losses[name].float() for name in self.names])
        for name, value in zip(self.names, stacked.tolist(), strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"The component `{name}` of the loss is {value}.")
        values = stacked.detach().double()
        if self.step.device != values.device:
            self.to(values.device)
        with torch.no_grad():
            weights = self._weights(values)
            if self.training:
                self._observe(values)
        total = (weights.to(stacked.dtype) * stacked).sum()
        if self.scheme == "uncertainty":
            spread = self.log_variance.clamp(-_MOST_LOG_VARIANCE, _MOST_LOG_VARIANCE)
            objective = ((-spread).exp() * stacked.detach() + spread).sum() / 2
            # Its value would make the loss unreadable; its gradient is what is wanted.
            total = total + objective - objective.detach()
        return total, dict(zip(self.names, weights.tolist(), strict=True))

    def _weights(self, values: torch.Tensor) -> torch.Tensor:
        # A component at 0 has nothing more to learn: without a floor `inverse` would divide by it.
        floored = values.clamp(min=1e-12).maximum(_FLOOR * values.mean())
        raw = SCHEMES[self.scheme](self, floored)
        return raw * (len(raw) / raw.sum())

    def _unit(self, values: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(values)

    def _fixed(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_tensor([self.fixed[name] for name in self.names])

    def _random(self, values: torch.Tensor) -> torch.Tensor:
        # From seed and step alone: there is no state of a generator to be kept.
        # Torch's generator for the CPU looks at 32 bits of its seed.
        generator = torch.Generator().manual_seed((1_000_003 * self.seed + int(self.step)) % 2**32)
        return torch.randn(len(values), generator=generator, dtype=torch.float64).softmax(dim=0).to(values.device)

    def _proportional(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def _inverse(self, values: torch.Tensor) -> torch.Tensor:
        return 1 / values

    def _relative(self, values: torch.Tensor) -> torch.Tensor:
        return self._ratio(values, self.mean.maximum(_FLOOR * values.mean()))

    def _relative_first(self, values: torch.Tensor) -> torch.Tensor:
        return self._ratio(values, self.first.maximum(_FLOOR * self.first.mean()))

    def _ratio(self, values: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        ratio = values / before.clamp(min=1e-12)
        return ratio.clamp(max=_MOST_RATIO) if self.step > 0 else torch.ones_like(values)

    def _uncertainty(self, values: torch.Tensor) -> torch.Tensor:
        return (-self.log_variance.double().clamp(-_MOST_LOG_VARIANCE, _MOST_LOG_VARIANCE)).exp()

    def _dwa(self, values: torch.Tensor) -> torch.Tensor:
        if self.step < 2 * self.window:
            return torch.ones_like(values)
        before, last = self.windows
        return (self._ratio(last, before.maximum(_FLOOR * before.mean())) / self.temperature).softmax(dim=0)

    def _cov(self, values: torch.Tensor) -> torch.Tensor:
        if self.step < 3:
            return torch.ones_like(values)
        spread = (self.ratio_square / (self.step - 1)).sqrt() / self.ratio_mean.clamp(min=1e-12)
        return spread if spread.sum() > 0 else torch.ones_like(values)

    def _observe(self, values: torch.Tensor) -> None:
        """Takes the losses of a step into the state."""
        if self.step == 0:
            self.first.copy_(values)
            self.mean.copy_(values)
        elif self.scheme == "cov":
            # Ratio to the mean of all steps before, and its variance by Welford's algorithm.
            ratio = (values / self.mean.clamp(min=1e-12)).clamp(max=_MOST_RATIO)
            delta = ratio - self.ratio_mean
            self.ratio_mean += delta / self.step
            self.ratio_square += delta * (ratio - self.ratio_mean)
            self.mean += (values - self.mean) / (self.step + 1)
        else:
            self.mean.lerp_(values, 1 - self.momentum)
        self.step += 1
        self.window_sum += values
        if self.step % self.window == 0:
            self.windows.copy_(torch.stack([self.windows[1], self.window_sum / self.window]))
            self.window_sum.zero_()


# Log-variances beyond would make a weight 20 times that of a component at 0, or a twentieth.
_MOST_LOG_VARIANCE = 3.0
# A loss counts at most as that many times its former self: one that rises from 0 is not to silence the others.
_MOST_RATIO = 3.0
# Losses count at least as this share of their mean where they are divided by.
_FLOOR = 1e-3

SCHEMES: dict[str, Callable[[LossWeighting, torch.Tensor], torch.Tensor]] = {
    "unit": LossWeighting._unit,
    "fixed": LossWeighting._fixed,
    "random": LossWeighting._random,
    "proportional": LossWeighting._proportional,
    "inverse": LossWeighting._inverse,
    "relative": LossWeighting._relative,
    "relative_first": LossWeighting._relative_first,
    "uncertainty": LossWeighting._uncertainty,
    "dwa": LossWeighting._dwa,
    "cov": LossWeighting._cov,
}
