"""Which parameters a transform finds, what is refused, and what groups bring along."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from stableopt import (
    Action,
    AdaptiveWeightDecay,
    ClipGradNorm,
    ConfigError,
    MaxNorm,
    QKClip,
    SpectralCap,
    StableOptimizer,
    UpdateCap,
    above,
    layers,
)
from stableopt.sensors import Sensors, SpectralNorm
from stableopt.transforms import Change, Found, Needs, NothingSelectedError, Phase, WhereFound
from stableopt.transforms.selection import Selection, selection
from tests.contract.bits import assert_same
from tests.sensors.runs import DENSE


class Special(nn.Linear):
    """A layer that derives from another one."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4)
        self.first = nn.Linear(4, 5)
        self.special = Special(5, 4)
        self.norm = nn.LayerNorm(4)

    def loss(self):
        return self.norm(self.special(self.first(self.table(torch.arange(6))))).pow(3).mean()


@pytest.fixture
def model():
    return Net()


def wrap(model, *transforms, sensors=(), names=True, **options):
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    return StableOptimizer(
        inner, model=model if names else None, sensors=sensors, transforms=transforms, **options
    )


def step(model, opt, scale=1.0):
    opt.zero_grad()
    (model.loss() * scale).backward()
    opt.step()


def found(opt, number=0):
    return {target.name for target in opt._loop.transforms._bound[number].found.targets}


def counts(opt):
    return [known["parameters"] for known in opt.summary()["transforms"]]


ALL = {name for name, _ in Net().named_parameters()}
SPECIAL = {"special.weight", "special.bias"}
LINEAR = {"first.weight", "first.bias"} | SPECIAL


class TestSelection:
    @pytest.mark.parametrize(
        ("params", "names"),
        [
            (None, ALL),
            ("*", ALL),
            ("first.*", {"first.weight", "first.bias"}),
            ("first.weight", {"first.weight"}),
            (["*.bias", "table.*"], {"first.bias", "special.bias", "norm.bias", "table.weight"}),
            (("first.?eight",), {"first.weight"}),
            (iter(["norm.*"]), {"norm.weight", "norm.bias"}),
            (layers(nn.Linear), LINEAR),
            (layers("Linear"), LINEAR),
            (layers(Special), SPECIAL),
            (layers("Special", nn.LayerNorm), SPECIAL | {"norm.weight", "norm.bias"}),
            (layers(nn.Linear, params="*.weight"), {"first.weight", "special.weight"}),
            (layers(nn.Module), ALL),
            ({"layers": "Special"}, SPECIAL),
            ({"layers": nn.Linear}, LINEAR),
            ({"layers": ["Special"], "params": ["*.bias"]}, {"special.bias"}),
        ],
    )
    def test_names_and_layer_types(self, model, params, names):
        opt = wrap(model, UpdateCap(params=params))
        assert found(opt) == names
        assert counts(opt) == [len(names)]

    def test_without_a_model_the_names_are_those_that_the_optimizer_knows(self, model):
        assert found(wrap(model, UpdateCap(params="0.[12]"), names=False)) == {"0.1", "0.2"}
        named = torch.optim.SGD(model.named_parameters(), lr=0.1)
        opt = StableOptimizer(named, transforms=[UpdateCap(params="norm.*")])
        assert found(opt) == {"norm.weight", "norm.bias"}

    def test_wrappers_of_a_model_are_not_in_the_names(self, model):
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        outer = nn.Sequential()
        outer.add_module("module", model)
        cap = UpdateCap(params=layers(Special, params="special.*"))
        assert found(StableOptimizer(inner, model=outer, transforms=[cap])) == SPECIAL

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ("head.*", r"params='head\.\*' matches no parameter: the names are table\.weight"),
            (["first.*", "haed"], "params='haed' matches no parameter"),
            (layers("Conv2d"), "layers='Conv2d' matches no parameter"),
            (layers(nn.Linear, nn.Conv2d), "layers='Conv2d' matches no parameter"),
            (layers(nn.LayerNorm, params="first.*"), "layers='LayerNorm' matches no parameter"),
        ],
    )
    def test_what_matches_nothing_is_an_error(self, model, params, message):
        with pytest.raises(NothingSelectedError, match=message):
            wrap(model, UpdateCap(params=params))

    def test_where_found_it_is_a_note(self, model, caplog):
        caplog.set_level(logging.INFO, "stableopt")
        transforms = [
            WhereFound(UpdateCap(params="head.*")),
            WhereFound(QKClip(100.0)),
            WhereFound(MaxNorm(1.0, params="first.*")),
        ]
        opt = wrap(model, *transforms)
        notes = [r.message for r in caplog.records if "is left out" in r.message]
        assert len(notes) == 2
        assert "params='head.*' matches no parameter" in notes[0]
        assert found(opt) == {"first.weight", "first.bias"}
        assert "MaxNorm" in opt.summary()["transforms"][0]["transform"]

    def test_where_found_other_errors_are_errors(self, model):
        with pytest.raises(ConfigError, match="dim=5 is no dimension"):
            wrap(model, WhereFound(MaxNorm(1.0, dim=5)))

    def test_layer_types_need_a_model(self, model):
        with pytest.raises(ConfigError, match=r"layers\(\) needs model="):
            wrap(model, UpdateCap(params=layers(nn.Linear)), names=False)

    @pytest.mark.parametrize(
        "params", [3, [], [3], "", [""], {}, {"params": "*"}, {"layers": "Linear", "parms": "*"}]
    )
    def test_what_is_no_selection_is_refused(self, params):
        with pytest.raises(ConfigError, match=r"^params=.* must be name patterns, e\.g\. "):
            UpdateCap(params=params)

    @pytest.mark.parametrize("kinds", [(), (3,), ("",), (None,), (nn.Linear(1, 1),), (int,)])
    def test_what_is_no_layer_type_is_refused(self, kinds):
        with pytest.raises(
            ConfigError, match=r"^layers(\(\) selects nothing| has .* no nn.Module)"
        ):
            layers(*kinds)
        with pytest.raises(
            ConfigError, match=r"^layers(\(\) selects nothing| has .* no nn.Module)"
        ):
            selection("params", {"layers": kinds[0] if len(kinds) == 1 else kinds})

    def test_several_without_an_order_are_sorted(self):
        names = [f"layer{i}.*" for i in range(20)]
        assert selection("params", set(names)) == Selection(tuple(sorted(names)))

    def test_it_reads_as_it_is_written(self):
        assert repr(UpdateCap(params="a.*")) == "UpdateCap(ratio=0.02, params=['a.*'])"
        assert repr(layers(nn.Linear, params="*.weight")) == "layers('Linear', params=['*.weight'])"
        assert eval(repr(layers("Linear"))) == layers(nn.Linear)

    def test_parameters_of_the_same_name_are_told_apart(self):
        left, right = nn.Linear(2, 2), nn.Linear(2, 2)
        with torch.no_grad():
            left.weight.fill_(1.0)
            right.weight.fill_(100.0)
        groups = [{"params": left.named_parameters()}, {"params": right.named_parameters()}]
        opt = StableOptimizer(
            torch.optim.SGD(groups, lr=1.0), sensors=(), transforms=[UpdateCap(0.01)]
        )
        for weight in (left.weight, right.weight):
            weight.grad = torch.full((2, 2), 1e6)
        opt.step()
        assert left.weight.flatten().tolist() == pytest.approx([0.99] * 4)
        moved = 0.01 * 2 * 2**0.5 / 2  # of the most that counts as a norm, in four entries
        assert right.weight.flatten().tolist() == pytest.approx([100 - moved] * 4)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), True, "1", None, [1.0]])
def test_a_norm_to_clip_at_that_cannot_be_is_refused(value):
    with pytest.raises(
        ConfigError,
        match=r"^max_norm=.* must be a number above 0: the largest global gradient norm that may",
    ):
        ClipGradNorm(value)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: ClipGradNorm(1.0, params=params),
        lambda params: UpdateCap(params=params),
        lambda params: MaxNorm(1.0, params=params),
        lambda params: AdaptiveWeightDecay(when="alarm > 1", params=params),
    ],
)
def test_every_transform_checks_its_selection_before_it_is_used(make):
    with pytest.raises(ConfigError, match=r"^params=3 must be name patterns, e\.g\. "):
        make(3)


class TestConflicts:
    def test_the_same_metric_of_the_same_parameter(self, model):
        with pytest.raises(ConfigError, match=r"both move the norm of first\.weight: .*params="):
            wrap(model, MaxNorm(1.0, params=["first.*"]), MaxNorm(2.0))

    def test_other_parameters_or_another_metric_are_fine(self, model):
        opt = wrap(
            model,
            MaxNorm(1.0, params="first.*"),
            MaxNorm(2.0, params="special.*"),
            UpdateCap(),
            ClipGradNorm(1.0, params="first.*"),
            ClipGradNorm(2.0, params=["special.*", "norm.*", "table.*"]),
        )
        assert counts(opt) == [2, 2, 7, 2, 5]

    def test_a_group_and_a_global_one(self, model):
        cap = UpdateCap(0.5)
        groups = [
            {"params": model.first.parameters(), "transforms": [cap]},
            {"params": model.norm.parameters()},
        ]
        inner = torch.optim.SGD(groups, lr=0.1)
        with pytest.raises(ConfigError, match=r"both move the update_ratio of first\.weight"):
            StableOptimizer(inner, model=model, transforms=[UpdateCap()])
        assert inner.param_groups[0]["transforms"] == [cap]
        opt = StableOptimizer(inner, model=model, transforms=[UpdateCap(params="norm.*")])
        assert [found(opt, 0), found(opt, 1)] == [
            {"norm.weight", "norm.bias"},
            {"first.weight", "first.bias"},
        ]

    def test_between_groups_there_are_none(self, model):
        groups = [
            {"params": model.first.parameters(), "transforms": [UpdateCap(0.5)]},
            {"params": model.norm.parameters(), "transforms": [UpdateCap(0.5)]},
        ]
        opt = StableOptimizer(torch.optim.SGD(groups, lr=0.1), model=model)
        assert [known["group"] for known in opt.summary()["transforms"]] == [0, 1]


class TestMetrics:
    def test_a_metric_that_no_sensor_measures(self, model):
        cap = SpectralCap(1.0)
        with pytest.raises(
            ConfigError, match=r"reads 'spectral_norm', and no sensor measures it: add SpectralNor"
        ):
            wrap(model, cap, sensors=())
        soft = SpectralCap(mode="soft", when="condition_number > 100")
        with pytest.raises(ConfigError, match=r"add ConditionNumber\(\) to sensors="):
            wrap(model, soft, sensors=[SpectralNorm()])

    @pytest.mark.parametrize(
        ("metric", "meant"), [("spectral_nrom", "spectral_norm"), ("fiedlr", "fiedler")]
    )
    def test_a_typo(self, model, metric, meant):
        with pytest.raises(ConfigError, match=f"reads '{metric}'.*did you mean '{meant}'"):
            wrap(model, AdaptiveWeightDecay(when=above(metric, 1.0)), sensors=DENSE)

    def test_any_other_name_is_a_signal(self, model):
        opt = wrap(model, AdaptiveWeightDecay(when="overfitting > 1"))
        assert not opt._loop.transforms.reads

    def test_parameters_that_no_sensor_visits(self, model):
        sensors = Sensors(use=(SpectralNorm(),), params=["first.*"])
        cap = SpectralCap(1.0)
        with pytest.raises(
            ConfigError,
            match=r"acts on table\.weight and 1 more, where no sensor reads 'spectral_norm'",
        ):
            wrap(model, cap, sensors=sensors)
        opt = wrap(model, SpectralCap(1.0, params="first.weight"), sensors=sensors)
        assert found(opt) == {"first.weight"}
        decay = AdaptiveWeightDecay(when="spectral_norm > 1", params="first.*")
        with pytest.raises(ConfigError, match=r"acts on first\.bias, where no sensor reads"):
            wrap(model, decay, sensors=sensors)

    def test_without_params_a_decay_acts_on_what_can_be_measured(self):
        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.usual = nn.Parameter(torch.ones(3, 3))
                self.empty = nn.Parameter(torch.ones(0, 3))
                self.vector = nn.Parameter(torch.ones(3))
                self.counts = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)

        decay = AdaptiveWeightDecay(when="spectral_norm > 1")
        assert found(wrap(Odd(), decay, sensors=DENSE)) == {"usual"}

    def test_what_is_acted_upon_is_never_postponed(self, model):
        opt = wrap(model, sensors=DENSE)
        assert not opt._loop.sensing.acts
        extra = nn.Parameter(torch.ones(3, 3))
        opt.add_param_group({"params": [extra], "transforms": [SpectralCap(1.0)]})
        assert opt._loop.sensing.acts


def two_groups(model, transforms):
    groups = [
        {"params": list(model.first.parameters()), "transforms": transforms},
        {"params": list(model.norm.parameters())},
    ]
    return torch.optim.SGD(groups, lr=0.1)


class TestGroups:
    @pytest.mark.parametrize(
        "transforms", [[MaxNorm(0.5)], (MaxNorm(0.5),), [{"MaxNorm": {"limit": 0.5}}]]
    )
    def test_a_group_may_have_its_own(self, model, transforms):
        inner = two_groups(model, transforms)
        opt = StableOptimizer(inner, model=model, sensors=())
        assert all("transforms" not in group for group in inner.param_groups)
        assert found(opt) == {"first.weight"}
        assert opt.summary()["transforms"][0]["group"] == 0
        step(model, opt)
        assert float(model.first.weight.detach().norm()) == pytest.approx(0.5)

    def test_patterns_are_looked_up_in_the_group(self, model):
        opt = StableOptimizer(two_groups(model, [UpdateCap(params="*.weight")]), model=model)
        assert found(opt) == {"first.weight"}
        with pytest.raises(NothingSelectedError, match=r"params='norm\.\*' matches no parameter"):
            StableOptimizer(two_groups(model, [UpdateCap(params="norm.*")]), model=model)

    def test_they_are_never_in_a_state_dict(self, model):
        opt = StableOptimizer(two_groups(model, [MaxNorm(1.0)]), model=model)
        extra = {"params": [nn.Parameter(torch.ones(2, 2))], "transforms": ["UpdateCap"]}
        opt.add_param_group(extra)
        state = opt.state_dict()
        assert all("transforms" not in group for group in state["param_groups"])
        assert all("transforms" not in group for group in opt.param_groups)
        assert extra["transforms"] == ["UpdateCap"]
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
        torch.optim.SGD(
            [{"params": list(m.parameters())} for m in (model.first, model.norm)]
            + [{"params": [torch.ones(2, 2)]}],
            lr=0.1,
        ).load_state_dict({key: state[key] for key in ("state", "param_groups")})

    def test_an_added_group_brings_its_own(self, model):
        opt = wrap(model)
        extra = nn.Parameter(torch.full((2, 2), 3.0))
        opt.add_param_group({"params": [extra], "transforms": [{"MaxNorm": {"limit": 2.0}}]})
        extra.grad = torch.zeros(2, 2)
        opt.step()
        assert extra.flatten().tolist() == pytest.approx([1.0] * 4)
        assert opt.summary()["transforms"][0]["group"] == 1

    def test_global_transforms_act_on_it_as_well(self, model):
        opt = wrap(model, UpdateCap(0.01))
        step(model, opt, 1e6)
        extra = nn.Parameter(torch.full((4,), 1.0))
        opt.add_param_group({"params": [extra], "lr": 1.0})
        assert counts(opt) == [8]
        extra.grad = torch.full((4,), 1e6)
        opt.step()
        assert extra.tolist() == pytest.approx([0.99] * 4)

    def test_also_if_the_inner_optimizer_was_given_it(self, model):
        opt = wrap(model, UpdateCap(0.01))
        extra = nn.Parameter(torch.full((4,), 1.0))
        opt.optimizer.add_param_group({"params": [extra], "lr": 1.0})
        extra.grad = torch.full((4,), 1e6)
        opt.step()
        assert extra.tolist() == pytest.approx([0.99] * 4)
        assert counts(opt) == [8]

    def test_counts_and_episodes_go_on_when_a_group_is_added(self, model):
        opt = wrap(model, UpdateCap(1e-6))
        step(model, opt)
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
        step(model, opt)
        (known,) = opt.summary()["transforms"]
        assert known["steps"] == 2
        assert known["changes"] == 14
        assert len(opt.ledger) == 1

    @pytest.mark.parametrize(
        "transforms",
        [
            [UpdateCap()],
            [MaxNorm(1.0, dim=7)],
            [MaxNorm(1.0, params="nothing")],
            [SpectralCap(1.0)],
            [{"MaxNorm": {}}],
            ["NoSuchThing"],
            [3],
            3,
            "UpdateCap",
        ],
    )
    def test_a_group_that_cannot_work_is_not_added(self, model, transforms):
        def run(opt, wrong):
            step(model, opt, 1e6)
            if wrong:
                group = {"params": [nn.Parameter(torch.ones(3, 3))], "transforms": transforms}
                before = [dict(group) for group in opt.param_groups]
                told = opt.summary()["transforms"]
                state = opt.state_dict()
                with pytest.raises(ConfigError):
                    opt.add_param_group(group)
                assert [dict(group) for group in opt.param_groups] == before
                assert opt.summary()["transforms"] == told
                assert_same(opt.state_dict(), state)
            step(model, opt, 1e6)
            return [p.detach().clone() for p in model.parameters()], opt.state_dict()

        start = copy.deepcopy(model.state_dict())
        ends = []
        for wrong in (False, True):
            model.load_state_dict(start)
            ends.append(run(wrap(model, UpdateCap(0.01), ClipGradNorm(1.0)), wrong))
        assert_same(*ends)

    @pytest.mark.parametrize("transforms", [[MaxNorm(1.0, dim=7)], [UpdateCap(params="no")], [3]])
    def test_a_construction_that_fails_leaves_the_groups_as_they_were(self, model, transforms):
        inner = two_groups(model, transforms)
        with pytest.raises(ConfigError):
            StableOptimizer(inner, model=model)
        assert inner.param_groups[0]["transforms"] is transforms

    def test_news_is_not_lost_when_a_group_is_added(self):
        model = nn.Linear(3, 3)
        decay = AdaptiveWeightDecay(when="spectral_norm > 1e-3", hold=False, base=0.5)
        opt = wrap(model, decay, sensors=Sensors(use=(SpectralNorm(),)))
        for p in model.parameters():
            p.grad = torch.full_like(p, float("nan"))
        opt.step()  # reads, and skips
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
        before = model.weight.detach().clone()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
        assert not torch.equal(model.weight, before)


class TestLazy:
    def lazy(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))

    def train(self, model, opt):
        opt.zero_grad()
        (model(torch.ones(3, 5)) * 1e6).sum().backward()
        opt.step()

    def test_parameters_without_a_shape_are_found_once_they_have_one(self):
        model = self.lazy()
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        opt = StableOptimizer(inner, model=model, transforms=[UpdateCap(0.01)])
        assert counts(opt) == [2]
        model(torch.ones(3, 5))
        before = [p.detach().clone() for p in model.parameters()]
        self.train(model, opt)
        assert counts(opt) == [4]
        for old, new in zip(before, model.parameters(), strict=True):
            reach = max(float(old.norm()), 1.0)
            assert float((new - old).detach().norm()) <= 0.011 * max(reach, len(old) ** 0.5)

    @pytest.mark.parametrize("guard", [None, False])
    def test_a_transform_may_have_nothing_but_these(self, guard):
        model = nn.LazyLinear(2)
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        opt = StableOptimizer(inner, guard=guard, sensors=(), transforms=[ClipGradNorm(1.0)])
        assert counts(opt) == []
        model(torch.ones(3, 5))
        before = [p.detach().clone() for p in model.parameters()]
        self.train(model, opt)
        moved = [(p - old).detach() for p, old in zip(model.parameters(), before, strict=True)]
        assert float(nn.utils.get_total_norm(moved)) == pytest.approx(1.0)

    def test_what_is_not_there_in_the_end_is_an_error(self):
        model = nn.LazyLinear(2)
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        opt = StableOptimizer(inner, transforms=[UpdateCap(params="nothing.*")])
        with pytest.raises(NothingSelectedError, match=r"params='nothing\.\*' matches no"):
            self.train(model, opt)

    def test_one_that_never_gets_a_shape_does_not_start_anything_anew(self):
        model = nn.ModuleList([nn.LazyLinear(2), nn.Linear(5, 2)])
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        opt = StableOptimizer(inner, sensors=(), transforms=[UpdateCap(0.01)])
        for _ in range(3):
            self.train(model[1], opt)
        assert opt.summary()["transforms"][0]["steps"] == 3
        assert len(opt.ledger) == 1

    def test_readings_are_never_postponed_once_something_acts_upon_them(self):
        model = nn.Sequential(nn.LazyLinear(4))
        inner = torch.optim.SGD(model.parameters(), lr=1.0)
        opt = StableOptimizer(inner, sensors=DENSE, transforms=[SpectralCap(1.0)])
        assert not opt._loop.sensing.acts
        self.train(model, opt)
        assert opt._loop.sensing.acts
        assert counts(opt) == [1]


class TestCopies:
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_they_act_as_the_original_would_and_by_themselves(self, copied):
        def steps(opt, n, scale=1e6):
            for i in range(n):
                for group in opt.param_groups:
                    for p in group["params"]:
                        p.grad = torch.sin(torch.arange(float(p.numel()))).view_as(p) * scale + i
                opt.step()
            weights = [p.detach().clone() for group in opt.param_groups for p in group["params"]]
            return weights, opt.state_dict(), opt.summary()["transforms"]

        decay = AdaptiveWeightDecay(when="spectral_norm > 0.1", decoupled=True, base=0.5)
        groups = [
            {"params": [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(2))]},
            {"params": [nn.Parameter(torch.ones(3, 2))], "transforms": [MaxNorm(0.9)]},
        ]
        opt = StableOptimizer(
            torch.optim.Adam(groups, lr=0.1),
            sensors=DENSE,
            transforms=[UpdateCap(0.05), ClipGradNorm(1.0), decay],
        )
        steps(opt, 3)
        twin = copied(opt)
        kept = [p.detach().clone() for group in opt.param_groups for p in group["params"]]
        ends = steps(twin, 3)
        assert_same([p.detach() for group in opt.param_groups for p in group["params"]], kept)
        assert_same(steps(opt, 3), ends)


@dataclass(frozen=True)
class Shift:
    """A transform as a user might write it."""

    by: float
    params: object = None
    phase = Phase.WEIGHT
    metric = "shift"
    routine = False
    needs = Needs()

    def find(self, site):
        return Found(site.targets)

    def act(self, view, found, memory):
        memory["done"] = memory.get("done", 0) + 1
        for target in found.targets:
            view.parameter(target).add_(self.by)
        return [Change(t.name, torch.tensor(0.0), self.by) for t in found.targets]


class Plain:
    """One that has no ``__repr__`` of its own."""

    params = "norm.*"
    phase = Phase.WEIGHT
    metric = "plain"
    routine = True
    needs = Needs()
    by = 0.0
    find, act = Shift.find, Shift.act


class TestCustom:
    def test_it_works_like_those_that_come_with_the_package(self, model, events):
        opt = wrap(model, Shift(2.0, params="norm.*"), telemetry=events)
        before = copy.deepcopy(model.state_dict())
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        opt.step()
        opt.close()
        for name, value in model.state_dict().items():
            assert_same(value, before[name] + 2.0 if name.startswith("norm.") else before[name])
        (event,) = opt.ledger
        assert event.intervened
        assert event.acts[0].sentence() == (
            "Shift moves the shift of norm.weight from 0 to 2, and of 1 more"
        )
        assert all(type(number) is float for number in event.acts[0].before + event.acts[0].after)
        assert_same(events.seen[0].acts, event.acts)

    @pytest.mark.parametrize("make", [lambda: Shift(0.0), Plain, lambda: WhereFound(Plain())])
    def test_what_it_remembers_is_found_again(self, model, make):
        opt = wrap(model, make())
        for _ in range(3):
            step(model, opt)
        again = wrap(model, make())
        again.load_state_dict(opt.state_dict())
        (memory,) = again.state_dict()["stableopt"]["transforms"]["states"].values()
        assert memory == {"done": 3}

    def test_its_key_survives_other_options_and_wrappers(self, model):
        opt = wrap(model, UpdateCap(), Shift(0.0))
        step(model, opt)
        again = wrap(model, UpdateCap(0.5), WhereFound(Shift(1.0, params="norm.*")))
        again.load_state_dict(opt.state_dict())
        states = again.state_dict()["stableopt"]["transforms"]["states"]
        assert states == {"0.UpdateCap": {}, "1.Shift": {"done": 1}}

    def test_a_group_counts_its_own(self, model):
        inner = two_groups(model, [UpdateCap(), Shift(0.0)])
        opt = StableOptimizer(inner, transforms=[Shift(0.0, "1.*")])
        states = opt.state_dict()["stableopt"]["transforms"]["states"]
        assert list(states) == ["0.Shift", "0.UpdateCap@group0", "1.Shift@group0"]

    def test_a_checkpoint_of_other_transforms_is_reported_once(self, model, caplog):
        opt = wrap(model, UpdateCap(), Shift(0.0))
        step(model, opt)
        again = wrap(model, Shift(0.0), Plain())
        again.load_state_dict(opt.state_dict())
        (said,) = [r.message for r in caplog.records if "other transforms" in r.message]
        assert "its state of 0.UpdateCap, 1.Shift is not used" in said
        assert "it has no state of 0.Shift, 1.Plain, which starts empty" in said
        states = again.state_dict()["stableopt"]["transforms"]["states"]
        assert states == {"0.Shift": {}, "1.Plain": {}}

    def test_the_same_transforms_or_none_at_all_are_not_reported(self, model, caplog):
        opt = wrap(model, Shift(0.0))
        opt.load_state_dict(wrap(model, Shift(1.0)).state_dict())
        opt.load_state_dict(wrap(model).state_dict())
        opt.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())
        assert "other transforms" not in caplog.text

    def test_a_rollback_restores_its_memory_and_reports_no_later_group(self, model, caplog):
        opt = wrap(model, Shift(0.0, params="norm.*"))
        step(model, opt)
        opt.snapshot()
        step(model, opt)
        step(model, opt)
        opt.add_param_group({"params": [nn.Parameter(torch.ones(2))], "transforms": [UpdateCap()]})
        opt.rollback()
        step(model, opt)
        assert opt.verdict.action is Action.ROLL_BACK
        states = opt.state_dict()["stableopt"]["transforms"]["states"]
        assert states == {"0.Shift": {"done": 2}, "0.UpdateCap@group1": {}}
        assert "other transforms" not in caplog.text

    @pytest.mark.parametrize(
        "broken",
        [
            {"peaks": {"0": -1.0}},
            {"peaks": {"zero": 1.0}},
            {"peaks": {"0": 0.5}, "states": {"0.Shift": 3}},
            {"peaks": {"0": 0.5}, "states": {"0.Shift": {"done": {1, 2}}}},
            {"peaks": {"0": 0.5}, "states": [1]},
        ],
    )
    def test_a_broken_state_changes_nothing(self, model, broken):
        opt = wrap(model, Shift(0.0), UpdateCap())
        step(model, opt)
        before = opt._loop.transforms.state_dict()
        with pytest.raises((AttributeError, TypeError, ValueError)):
            opt._loop.transforms.prepare(broken)
        assert opt._loop.transforms.state_dict() == before
        checkpoint = opt.state_dict()
        checkpoint["stableopt"]["transforms"] = broken
        with pytest.raises(ConfigError, match="is not what state_dict"):
            opt.load_state_dict(checkpoint)

    def test_what_it_remembers_is_plain_data_and_tensors(self, model):
        class Mean(Plain):
            def act(self, view, found, memory):
                memory["mean"] = memory.get("mean", torch.zeros(2)).add_(1)
                return ()

        class Odd(Plain):
            def act(self, view, found, memory):
                memory["seen"] = {1, 2}
                return ()

        opt = wrap(model, Mean())
        step(model, opt)
        state = opt.state_dict()
        step(model, opt)
        assert_same(state["stableopt"]["transforms"]["states"]["0.Mean"]["mean"], torch.ones(2))
        opt = wrap(model, Odd(), guard=False)
        step(model, opt)
        with pytest.raises(ConfigError, match=r"memory of 0\.Odd has \{1, 2\}: keep numbers"):
            opt.state_dict()

    @pytest.mark.parametrize("thing", [Shift, Plain, 3, None, object(), lambda: None, Found(())])
    def test_what_is_no_transform_is_refused(self, model, thing):
        with pytest.raises(ConfigError, match=r"^transforms has .* is no transform: see"):
            wrap(model, thing)

    @pytest.mark.parametrize("thing", [None, [], ()])
    def test_what_returns_something_else_than_found_is_refused(self, model, thing):
        class Nothing(Plain):
            def find(self, site):
                return thing

        with pytest.raises(ConfigError, match=r"whose find\(\) returned .*: it must return"):
            wrap(model, Nothing())

    def test_what_finds_nothing_is_refused(self, model):
        class Nothing(Plain):
            def find(self, site):
                return Found(())

        with pytest.raises(NothingSelectedError, match="finds no parameter that it can act on"):
            wrap(model, Nothing())
