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
"""Weights of several losses: what each scheme gives, and that its state survives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from safetensors.torch import load, save

from fusionmatch.training.weighting import SCHEMES, LossWeighting


NAMES = ("fused", "instance", "consensus", "concept")
FIXED = dict(zip(NAMES, (3, 5, 1, 2), strict=True))


def weighting(scheme, names=NAMES, **settings):
    return LossWeighting(names, scheme, fixed=FIXED if scheme == "fixed" else None, **settings)


def losses(*values, names=NAMES):
    return {name: torch.tensor(float(value)) for name, value in zip(names, values, strict=True)}


def run(module, history):
    return [list(module(losses(*values))[1].values()) for values in history]


class TestClosedForms:
    def test_unit_and_fixed(self):
        assert run(weighting("unit"), [(1, 2, 3, 4)]) == [[1, 1, 1, 1]]
        assert run(weighting("fixed"), [(1, 2, 3, 4)])[0] == approx([12 / 11, 20 / 11, 4 / 11, 8 / 11])

    def test_proportional_and_inverse(self):
        assert run(weighting("proportional"), [(1, 2, 3, 4)])[0] == approx([0.4, 0.8, 1.2, 1.6])
        inverse = [1, 1 / 2, 1 / 3, 1 / 4]
        assert run(weighting("inverse"), [(1, 2, 3, 4)])[0] == approx([4 * w / sum(inverse) for w in inverse])

    def test_inverse_makes_all_count_alike(self):
        module = weighting("inverse")
        values = losses(1, 20, 300, 4000, names=NAMES)
        _, weights = module({name: value / 100 for name, value in values.items()})
        parts = [weights[name] * values[name].item() for name in NAMES]
        # A floor keeps the smallest from taking everything.
        assert parts[1:] == approx([parts[1]] * 3)

    def test_relative_to_the_first_value(self):
        first, second = run(weighting("relative_first"), [(1, 2, 4, 8), (1, 1, 1, 8)])
        assert first == [1, 1, 1, 1]
        shares = [1, 1 / 2, 1 / 4, 1]
        assert second == approx([4 * share / sum(shares) for share in shares])

    def test_relative_to_the_running_mean(self):
        history = [(1, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 1)]
        *_, last = run(weighting("relative", momentum=0.5), history)
        means = [1.5, 2, 3, 4]
        ratios = [value / mean for value, mean in zip(history[-1], means, strict=True)]
        assert last == approx([4 * ratio / sum(ratios) for ratio in ratios])

    def test_dwa(self):
        module = weighting("dwa", window=2, temperature=2.0)
        history = [(4, 4, 4, 4), (4, 4, 4, 4), (2, 4, 4, 6), (2, 4, 4, 6), (9, 9, 9, 9)]
        *before, last = run(module, history)
        assert before == [[1, 1, 1, 1]] * 4
        powers = [math.exp(ratio / 2) for ratio in (0.5, 1, 1, 1.5)]
        assert last == approx([4 * power / sum(powers) for power in powers])

    def test_cov(self):
        module = weighting("cov")
        history = [(1, 1, 1, 1), (2, 1, 1, 1), (1, 1, 2, 1), (3, 1, 1, 1)]
        *_, last = run(module, history)
        # Ratios to the mean of the steps before: component 0: 2, 1 / 1.5; component 2: 1, 2; the others never move.
        spreads = []
        for ratios in ((2, 2 / 3), (1, 1), (1, 2), (1, 1)):
            mean = sum(ratios) / 2
            spreads.append(math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / 2) / mean)
        assert last == approx([4 * spread / sum(spreads) for spread in spreads])

    def test_random_has_no_favourite_and_its_seed(self):
        rows = torch.tensor(run(weighting("random"), [(1, 2, 3, 4)] * 400))
        assert rows.std(dim=0).min() > 0.3
        assert (rows.mean(dim=0) - 1).abs().max() < 0.15
        assert run(weighting("random"), [(1, 2, 3, 4)] * 3) == run(weighting("random"), [(4, 3, 2, 1)] * 3)
        assert run(weighting("random", seed=1), [(1, 2, 3, 4)]) != run(weighting("random"), [(1, 2, 3, 4)])

    def test_uncertainty_finds_the_log_of_each_loss(self):
        """At the minimum of (exp(-s) L + s) / 2 the log-variance s is log L, so the weight is 1 / L."""
        module = weighting("uncertainty")
        optimizer = torch.optim.SGD([module.log_variance], lr=0.5)
        for _ in range(200):
            optimizer.zero_grad()
            module(losses(0.5, 1, 2, 4))[0].backward()
            optimizer.step()
        assert module.log_variance.tolist() == approx([math.log(value) for value in (0.5, 1, 2, 4)], abs=1e-3)
        weights = list(module(losses(0.5, 1, 2, 4))[1].values())
        assert [weight * value for weight, value in zip(weights, (0.5, 1, 2, 4), strict=True)] == approx(
            [weights[0] / 2] * 4, rel=1e-2
        )


@pytest.mark.parametrize("scheme", SCHEMES)
class TestAll:
    def test_weights_are_no_part_of_the_graph(self, scheme):
        module = weighting(scheme)
        model = torch.ones(4, requires_grad=True)
        for scale in (1.0, 0.5, 0.7, 0.9):
            model.grad = None
            values = dict(zip(NAMES, scale * model * torch.tensor([1.0, 2.0, 3.0, 4.0]), strict=True))
            total, weights = module(values)
            total.backward()
            by_hand = [weights[name] * scale * factor for name, factor in zip(NAMES, (1, 2, 3, 4), strict=True)]
            assert model.grad.tolist() == approx(by_hand, rel=1e-5)
            assert total.item() == approx(sum(by_hand), rel=1e-5)

    @given(history=st.lists(st.tuples(*[st.floats(0, 1e4)] * 4), min_size=1, max_size=12))
    @settings(max_examples=30, deadline=None)
    def test_mean_one_never_negative_always_finite(self, scheme, history):
        """Also at zero, where an inverse would be infinite."""
        for row in run(weighting(scheme, window=2), history):
            assert sum(row) == approx(4)
            assert all(weight >= 0 and math.isfinite(weight) for weight in row)

    def test_resumed_is_bit_for_bit_the_same(self, scheme):
        generator = torch.Generator().manual_seed(0)
        history = (torch.rand(60, 4, generator=generator) * 3).tolist()
        whole, resumed = weighting(scheme, window=7), weighting(scheme, window=7, momentum=0.99)
        learned = torch.optim.SGD(whole.parameters(), lr=0.1)
        for values in history[:33]:
            total, _ = whole(losses(*values))
            if total.requires_grad:
                learned.zero_grad()
                total.backward()
                learned.step()
        resumed.load_state_dict(load(save(whole.state_dict())))
        assert run(resumed, history[33:]) == run(whole, history[33:])

    def test_evaluation_leaves_the_state_alone(self, scheme):
        module = weighting(scheme)
        module(losses(1, 2, 3, 4))
        before = {name: value.clone() for name, value in module.state_dict().items()}
        module.eval()(losses(4, 3, 2, 1))
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_broken_component_is_named(self, scheme, bad):
        module = weighting(scheme)
        with pytest.raises(FloatingPointError, match="`consensus`"):
            module(losses(1, 2, bad, 4))
        assert module.step == 0

    def test_one_component_keeps_its_weight(self, scheme):
        module = LossWeighting(["fused"], scheme, fixed={"fused": 3.0})
        for value in (2.0, 0.0, 1.0):
            total, weights = module({"fused": torch.tensor(value)})
            assert weights == {"fused": approx(1)} and total.item() == approx(value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheme": "best"}, "no weighting 'best'"),
        ({"scheme": "fixed"}, "a weight for each"),
        ({"scheme": "fixed", "fixed": {"fused": 1.0}}, "a weight for each"),
        ({"scheme": "fixed", "fixed": dict.fromkeys(NAMES, 0.0)}, "not all 0"),
        ({"names": ["fused", "fused"]}, "names of their own"),
        ({"momentum": 1.0}, "`momentum`"),
        ({"window": 0}, "`window`"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        LossWeighting(**({"names": NAMES} | settings))


@pytest.mark.parametrize(
    ("scheme", "history"),
    [
        ("relative", [(1, 1, 1, 0), (1, 1, 1, 0.1)]),
        ("relative_first", [(1, 1, 1, 0), (1, 1, 1, 0.1)]),
        ("dwa", [(1, 1, 1, 0)] * 5 + [(1, 1, 1, 0.1)] * 5 + [(1, 1, 1, 1)]),
        ("cov", [(1, 1, 1, 0), (2, 1, 2, 0.1)] + [(1, 2, 1, 0.1), (2, 1, 2, 0.1)] * 50),
    ],
)
def test_a_component_that_was_0_silences_no_other(scheme, history):
    settings = {"window": 5} if scheme == "dwa" else {}
    last = run(weighting(scheme, **settings), history)[-1]
    assert sum(last) == approx(4) and max(last) < 2.1


def test_other_components_are_refused():
    with pytest.raises(ValueError, match="Expected the components"):
        weighting("unit")({"fused": torch.tensor(1.0)})
