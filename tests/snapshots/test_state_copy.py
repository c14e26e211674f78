"""StateCopy walks any state and restores it to the bit, in place and with its aliases."""

from __future__ import annotations

import copy

import torch
from torch import nn

from stableopt.snapshots.state_copy import StateCopy
from tests.contract.bits import assert_same
from tests.contract.scenario import copied
from tests.contract.third_party import LowBitMomentum


class Odd(torch.optim.Optimizer):
    """Keeps state of every shape, and rebinds, shares and removes it."""

    def __init__(self, params):
        super().__init__(params, {"lr": torch.tensor(0.1), "notes": ["a"]})

    @torch.no_grad()
    def step(self, closure=None):
        self.state["global"] = {"count": self.state["global"].get("count", 0) + 1}
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            p.add_(1.0)
            shared = state.get("a", torch.zeros(2)) + 1
            state["a"] = shared
            state["b"] = shared if len(state) % 2 else shared.clone()
            state["list"] = [*state.get("list", []), torch.randn(2)][-3:]
            state["pair"] = (torch.randn(()), {"deep": [torch.randn(1)], "p": p})
            state.setdefault("inplace", torch.zeros(3)).add_(1)
            state["set"] = {1, 2, len(state["list"])}
        self.param_groups[0]["lr"].mul_(0.5)
        self.param_groups[0]["notes"].append("b")


def seen(opt):
    params = [p for g in opt.param_groups for p in g["params"]]
    names = {id(p): i for i, p in enumerate(params)}
    state = {names.get(id(k), k): v for k, v in opt.state.items()}
    options = [{k: v for k, v in g.items() if k != "params"} for g in opt.param_groups]
    return copied(params), copied(plain(state)), copied(options)


def plain(value):
    if isinstance(value, nn.Parameter):
        return "parameter"
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return sorted(value) if isinstance(value, set) else value


def test_any_state_comes_back_from_any_later_moment():
    params = [nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(3))]
    opt = Odd(params)
    saved = StateCopy()
    for later in (1, 2, 5):
        for _ in range(3):
            opt.step()
            saved.take(opt)
            before, pointers = seen(opt), [p.data_ptr() for p in params]
            inplace = opt.state[params[0]]["inplace"]
            for _ in range(later):
                opt.step()
            opt.state["new"] = torch.ones(2)
            opt.state[params[0]]["other"] = 3
            del opt.state[params[1]]["b"]
            opt.param_groups[0]["extra"] = 1
            saved.restore(opt)
            assert_same(seen(opt), before)
            assert [p.data_ptr() for p in params] == pointers
            assert opt.state[params[0]]["inplace"] is inplace
            assert opt.state[params[0]]["pair"][1]["p"] is params[0]


def test_the_copy_is_no_alias():
    params = [nn.Parameter(torch.randn(2))]
    opt = Odd(params)
    opt.step()
    saved = StateCopy()
    saved.take(opt)
    before = seen(opt)
    for _ in range(2):  # a restore must not hand out the copy itself
        opt.step()
        opt.state[params[0]].clear()
        opt.param_groups[0]["notes"] = None
        saved.restore(opt)
        assert_same(seen(opt), before)
        opt.state[params[0]]["a"].fill_(7)
        opt.state[params[0]]["list"][0].fill_(7)
        opt.state[params[0]]["pair"][1]["deep"].append(7)
        opt.param_groups[0]["notes"].append("c")


def test_sharing_is_kept_and_not_invented():
    p = nn.Parameter(torch.zeros(2))
    opt = Odd([p])
    shared = torch.ones(2)
    opt.state[p] = {"a": shared, "b": shared}
    saved = StateCopy()
    saved.take(opt)
    opt.state[p] = {"a": torch.zeros(2), "b": torch.zeros(2)}
    saved.restore(opt)
    assert opt.state[p]["a"] is opt.state[p]["b"]
    opt.state[p] = {"a": torch.ones(2), "b": torch.full((2,), 2.0)}
    saved.take(opt)
    opt.state[p] = {"a": shared, "b": shared}
    saved.restore(opt)
    assert opt.state[p]["a"].tolist() == [1.0, 1.0]
    assert opt.state[p]["b"].tolist() == [2.0, 2.0]


def test_no_state_before_the_first_step():
    p = nn.Parameter(torch.ones(2))
    opt = torch.optim.AdamW([p])
    saved = StateCopy()
    saved.take(opt)
    p.grad = torch.ones(2)
    opt.step()
    saved.restore(opt)
    assert not opt.state
    assert p.tolist() == [1.0, 1.0]


def test_tensor_subclasses_are_copied_as_what_they_are():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    opt = LowBitMomentum(model.parameters())
    saved = StateCopy()

    def step():
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        opt.step()

    step()
    saved.take(opt)
    before = copy.deepcopy(opt.state_dict()["state"])
    step()
    saved.restore(opt)
    assert_same(opt.state_dict()["state"], before)
