"""The shadow of the buffers follows every way a model may change them."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import nn

from stableopt import Guard, StableOptimizer
from stableopt.snapshots.buffers import LOOKS, BufferShadow
from tests.contract.bits import assert_same
from tests.contract.scenario import copied


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("cache", torch.zeros(2, 3), persistent=False)
        self.register_buffer("average", torch.zeros(2))
        self.register_buffer("initialized", torch.tensor(False))
        self.register_buffer("codes", torch.arange(4))
        self.register_buffer("later", None)
        self.register_buffer("shared", self.norm.running_mean)

    def forward(self, x):
        """Change statistics: in place, with a new tensor, and by counting."""
        self.codes += 1
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        self.initialized.fill_(True)
        return self.norm(x)


def buffers(model):
    return copied(dict(model.named_buffers()))


def batch(model, bad=False):
    return model(torch.full((5, 2), torch.nan) if bad else torch.randn(5, 2))


@pytest.mark.parametrize("heard", [True, False])
def test_every_kind_of_statistics_goes_back(heard):
    model = Odd()
    shadow = BufferShadow(model)
    if not heard:
        shadow.close()  # as where the forward pass is compiled
    for _ in range(4):
        batch(model)
        shadow.taken()
        before = buffers(model)
        pointer = model.norm.running_mean.data_ptr()
        batch(model, bad=True)
        shadow.left_out()
        assert_same(buffers(model), before)
        assert model.norm.running_mean.data_ptr() == pointer
        assert model.shared is model.norm.running_mean


class TestWhatTheUserChanges:
    """Between two steps, however, and not undone by a batch that is left out afterwards."""

    def changed(self, change, heard=True, steps=4):
        model = Odd()
        shadow = BufferShadow(model)
        if not heard:
            shadow.close()
        for _ in range(steps):
            batch(model)
            shadow.taken()
        change(model)
        expected = buffers(model)
        batch(model, bad=True)
        shadow.left_out()
        return model, shadow, expected

    @pytest.mark.parametrize("steps", [0, 1, 4])
    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.initialized.fill_(False),
            lambda m: m.cache.data.fill_(3.0),
            lambda m: m.load_state_dict({k: v + 1 for k, v in floats(m).items()}, strict=False),
            lambda m: m.norm.load_state_dict(nn.BatchNorm1d(2).state_dict()),
            lambda m: m.norm.running_mean.data.add_(1.0),
            torch.no_grad()(lambda m: m(torch.randn(7, 2))),  # update_bn
            lambda m: setattr(m, "average", torch.ones(2)),
        ],
        ids=["switch", "data", "loaded", "part loaded", "written", "calibrated", "rebound"],
    )
    def test_it_stays(self, change, steps):
        model, _, expected = self.changed(change, steps=steps)
        assert_same(buffers(model), expected)

    def test_a_switch_stays_where_the_forward_pass_is_not_heard(self):
        model, _, _ = self.changed(lambda m: m.cache.fill_(3.0), heard=False)
        assert (model.cache == 3.0).all()

    def test_what_was_loaded_stays_where_the_forward_pass_is_not_heard(self):
        model = Odd()
        shadow = BufferShadow(model)
        batch(model)
        shadow.taken()
        model.load_state_dict({k: v + 1 for k, v in floats(model).items()}, strict=False)
        expected = buffers(model)
        shadow.before_forward = None  # nobody hears it
        model.norm.running_var.data.fill_(9.0)
        shadow.left_out()
        assert_same(buffers(model)["norm.running_var"], expected["norm.running_var"])

    def test_a_mask_stays_in_a_rollback_and_statistics_do_not(self):
        model = Odd()
        shadow = BufferShadow(model)
        for _ in range(3):
            batch(model)
            shadow.taken()
        snapshot, then = shadow.current().copy_into(None), buffers(model)
        model.cache[0] = -torch.inf
        for _ in range(3):
            batch(model)
            shadow.taken()
        shadow.restorer(snapshot)()
        now = buffers(model)
        assert (now.pop("cache")[0] == -torch.inf).all()
        then.pop("cache")
        assert_same(now, then)

    @pytest.mark.parametrize("value", [torch.nan, 1e37])
    def test_a_mask_that_was_damaged_goes_back(self, value):
        model = Odd()
        shadow = BufferShadow(model)
        for _ in range(3):
            batch(model)
            shadow.taken()
        snapshot = shadow.current().copy_into(None)
        model.cache[1, 2] = value
        shadow.restorer(snapshot)()
        assert (model.cache == 0.0).all()


def floats(model):
    return {k: v for k, v in model.state_dict().items() if v.is_floating_point()}


class TestCaches:
    """A buffer that a forward pass replaces: what was computed with it cannot be restored."""

    def grown(self, make, go_back=False):
        model = Odd()
        shadow = BufferShadow(model)
        batch(model)
        shadow.taken()
        snapshot = shadow.current().copy_into(None)
        model.norm.register_forward_pre_hook(lambda module, args: make(model))
        batch(model)
        if go_back:
            shadow.taken()
            shadow.restorer(snapshot)()
        else:
            shadow.left_out()
        return model

    @pytest.mark.parametrize("go_back", [True, False])
    def test_a_longer_one_stays(self, go_back):
        def grow(model):
            model.register_buffer("cache", torch.ones(9, 3), persistent=False)

        assert self.grown(grow, go_back).cache.shape == (9, 3)

    @pytest.mark.parametrize("go_back", [True, False])
    def test_one_of_the_same_shape_stays(self, go_back):
        def again(model):
            model.register_buffer("cache", torch.ones(2, 3), persistent=False)

        assert (self.grown(again, go_back).cache == 1.0).all()

    def test_a_mask_of_minus_infinity_is_meant_to_be_one(self):
        def mask(model):
            model.register_buffer("cache", torch.full((4, 4), -torch.inf).triu(1))

        assert self.grown(mask).cache.shape == (4, 4)

    def test_the_first_one_stays(self):
        def make(model):
            model.later = torch.ones(2)

        assert (self.grown(make).later == 1.0).all()

    @pytest.mark.parametrize("persistent", [True, False])
    @pytest.mark.parametrize("go_back", [True, False])
    @pytest.mark.parametrize("at", [(1,), (2, 4), (0, 7)])
    def test_one_that_is_written_in_place_stays(self, go_back, persistent, at):
        """The number of its entries that are valid is kept beside it, in Python."""
        model = Odd()
        model.register_buffer("table", torch.zeros(9), persistent=persistent)
        shadow = BufferShadow(model)
        for n in range(10):
            if n == 8:
                snapshot = shadow.current().copy_into(None)
            batch(model)
            model.table.fill_(n + 1) if n in at else None
            shadow.taken()
        batch(model)
        model.table.fill_(10.0)
        if go_back:
            shadow.taken()
            shadow.restorer(snapshot)()
        else:
            shadow.left_out()
        assert (model.table == 10.0).all()

    def test_one_that_is_not_finite_does_not(self):
        def spoil(model):
            model.register_buffer("cache", torch.full((9, 3), torch.nan), persistent=False)
            model.later = torch.full((2,), torch.nan)

        model = self.grown(spoil)
        assert_same(model.cache, torch.zeros(2, 3))
        assert model.later is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.ones(4).to_mkldnn(),
        lambda: torch.ones(4).to(torch.complex32),
        lambda: torch.full((4,), 400.0).to(torch.float8_e4m3fn),
    ],
    ids=["coo", "csr", "quantized", "jagged", "nested", "mkldnn", "complex32", "float8"],
)
@pytest.mark.parametrize("late", [True, False])
def test_what_cannot_be_compared_is_left_alone(make, late):
    """In a buffer of a model that trains, skips and rolls back."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    if not late:
        model.register_buffer("odd", make())
    opt = StableOptimizer(torch.optim.AdamW(model.parameters()), model=model, guard=Guard(every=4))
    for step in range(24):
        if step == 6 and late:
            model.register_buffer("odd", make())
        if step == 20:
            opt.rollback()
        model(torch.randn(5, 2) * (torch.nan if step == 12 else 1.0)).square().mean().backward()
        opt.step()
        opt.zero_grad()
    assert [event.action.value for event in opt.ledger] == ["skip", "roll_back"]


def test_storage_that_is_freed_between_two_steps():
    model = Odd()
    opt = StableOptimizer(torch.optim.AdamW(model.parameters()), model=model, guard=Guard(every=4))
    for step in range(12):
        batch(model).square().mean().backward()
        if step == 3:
            model.cache.untyped_storage().resize_(0)
        opt.step()
        opt.zero_grad()
    assert opt.summary()["steps"] == 12


class Expanded(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("positions", torch.arange(8).expand(4, -1))
        self.register_buffer("mask", torch.ones(3, 3).tril().expand(2, 3, 3), persistent=False)
        self.register_buffer("window", torch.arange(6.0).unfold(0, 3, 1))


@pytest.mark.parametrize("bad", [True, False])
def test_many_elements_in_one_place(bad):
    model = Expanded()
    shadow = BufferShadow(model)
    before = buffers(model)
    snapshot = shadow.copy_into(None)
    for _ in range(3):
        model.norm(torch.randn(5, 2))
        if bad:
            model.mask.data[:, 1, 0].fill_(torch.nan)
        shadow.taken_if(torch.tensor(not bad))
        shadow.left_out()
    shadow.restorer(snapshot)()
    assert_same(buffers(model), before)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_is_added_moved_or_materialized_later_is_seen():
    model = Odd()
    model.lazy = nn.LazyBatchNorm1d()
    shadow = BufferShadow(model)
    model.register_buffer("late", torch.zeros(2))
    model.norm.add_module("inner", nn.BatchNorm1d(3))
    model.lazy(torch.randn(4, 5))
    model.double()
    for _ in range(LOOKS):
        model.norm.inner(torch.randn(4, 3).double())
        model.late += 1
        shadow.taken()
    before = buffers(model)
    model.norm.inner(torch.randn(4, 3).double())
    model.late += 1
    model.lazy(torch.randn(4, 5).double())
    shadow.left_out()
    assert_same(buffers(model), before)


def test_a_model_that_moved_since_keeps_its_dtype():
    model = Odd()
    shadow = BufferShadow(model)
    before = buffers(model)
    shadow.close()
    model.double()
    model.norm(torch.full((5, 2), torch.nan).double())
    shadow.left_out()
    assert model.norm.running_mean.dtype is torch.float64
    assert_same(model.norm.running_var.float(), before["norm.running_var"])
    model.norm(torch.randn(5, 2).double())


class TestHooks:
    def test_they_go_with_the_shadow(self):
        model = Odd()
        shadow = BufferShadow(model)
        assert model._forward_pre_hooks
        assert model._load_state_dict_post_hooks
        del shadow
        gc.collect()
        assert not model._forward_pre_hooks
        assert not model.norm._load_state_dict_post_hooks

    def test_a_module_that_gets_its_first_buffer_later_is_heard(self):
        model = nn.Linear(2, 2)
        shadow = BufferShadow(model)
        assert not model._forward_pre_hooks
        model.register_buffer("switch", torch.tensor(False))
        for _ in range(2):
            batch(model)
            shadow.taken()
        assert len(model._forward_pre_hooks) == len(model._load_state_dict_post_hooks) == 1
        shadow.close()
        assert not model._forward_pre_hooks
        assert not model._load_state_dict_post_hooks

    def test_copies_and_pickles_of_the_model_have_hooks_that_do_nothing(self):
        model = Odd()
        shadow = BufferShadow(model)
        written = pickle.dumps(model)
        assert b"stableopt" not in written, "a model can be read where this is not installed"
        for twin in (copy.deepcopy(model), pickle.loads(written)):
            with torch.no_grad():
                twin.norm.running_mean.fill_(7.0)
            batch(twin)
            twin.load_state_dict(twin.state_dict())
        shadow.left_out()
        assert (model.norm.running_mean == 0.0).all()

    def test_a_copy_of_the_shadow_hears_its_own_model(self):
        model = Odd()
        twin, other = copy.deepcopy((model, BufferShadow(model)))
        batch(twin)
        other.taken()
        twin.initialized.fill_(False)
        expected = buffers(twin)
        batch(twin, bad=True)
        other.left_out()
        assert_same(buffers(twin), expected)

    def test_no_graph_is_broken_and_none_made_twice(self):
        from torch._dynamo.testing import CompileCounter

        model = Odd()
        counter = CompileCounter()
        compiled = torch.compile(model.norm, backend=counter, fullgraph=True)
        compiled(torch.randn(5, 2)).sum().backward()
        shadow = BufferShadow(model)
        for _ in range(3):
            compiled(torch.randn(5, 2)).sum().backward()
            shadow.taken()
        assert counter.frame_count == 1
        torch._dynamo.reset()

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_scripting_says_what_to_do(self):
        model = nn.BatchNorm1d(2)
        shadow = BufferShadow(model)
        with pytest.raises(RuntimeError, match=r"call opt\.close\(\) first"):
            torch.jit.script(model)
        shadow.close()
        torch.jit.script(model)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_a_checkpoint_that_is_computed_again_begins_no_batch(self, reentrant):
        model = Odd()
        shadow = BufferShadow(model)
        for bad in (False, True):
            before = buffers(model)
            x = torch.full((5, 2), torch.nan) if bad else torch.randn(5, 2)
            x.requires_grad_()
            torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).sum().backward()
            shadow.left_out() if bad else shadow.taken()
        assert_same(buffers(model), before)
