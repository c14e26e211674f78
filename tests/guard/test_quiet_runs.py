"""Healthy trainings that look unusual: nothing is rolled back, and next to nothing is skipped.

Every run checks first that it is as unusual as it claims to be.
"""

from __future__ import annotations

from statistics import median

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import ExponentialLR, StepLR

from stableopt import Guard, StableOptimizer

SEEN_ONCE = 3
"""Batches of a heavy tail that may be left out before the tail is known."""


class Run:
    """A training loop around the default guard, and the losses that it saw."""

    def __init__(self, model, make, **options):
        self.opt = StableOptimizer(make(model.parameters(), **options), model=model)
        self.losses = []

    def train(self, loss_of, steps, scheduler=None):
        for step in range(steps):
            loss = loss_of(step)
            self.opt.zero_grad()
            loss.backward()
            self.opt.observe(loss=loss)
            self.opt.step()
            self.losses.append(loss.item())
            if scheduler is not None:
                scheduler.step()
        return self

    def assert_undisturbed(self, left_out=0):
        """Nothing was rolled back, and at most ``left_out`` batches that stand alone skipped."""
        summary = self.opt.summary()
        assert summary["rollbacks"] == summary["baseline_resets"] == 0
        assert summary["skips"] <= left_out, self.opt.ledger[0].reason
        assert summary["steps"] == summary["calls"] - summary["skips"]
        assert summary["calls"] == len(self.losses)
        assert summary["lr_scale"] == 1.0


@pytest.fixture(params=[0, 1])
def draw(request):
    """A generator of its own for the data; the weights follow the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.param)
        yield torch.Generator().manual_seed(request.param)


def mlp(inputs, outputs, width=48, activation=nn.ReLU):
    return nn.Sequential(
        nn.Linear(inputs, width),
        activation(),
        nn.Linear(width, width),
        activation(),
        nn.Linear(width, outputs),
    )


def adam(parameters, lr=3e-3):
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)


def momentum(parameters, lr):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def student(shape, degrees, draw):
    """Draw from Student's t distribution: the fewer degrees of freedom, the heavier its tails."""
    normal = torch.randn((degrees + 1, *shape), generator=draw)
    return normal[0] / normal[1:].square().mean(0).sqrt()


# (a) the data change for good


def shifted_labels(x, draw):
    return x, -3.0 * x[:, :1] + torch.randn(len(x), 1, generator=draw)


def shifted_inputs(x, draw):
    return 3.0 * x + 2.0, x[:, :1] + torch.randn(len(x), 1, generator=draw)


@pytest.mark.parametrize("shift", [shifted_labels, shifted_inputs])
def test_a_shift_of_the_data_is_the_new_normal_soon(shift, draw):
    model = mlp(8, 1)
    run = Run(model, adam)

    def before(step):
        x = torch.randn(32, 8, generator=draw)
        return F.mse_loss(model(x), x[:, :1] + 0.7 * torch.randn(32, 1, generator=draw))

    def after(step):
        x, y = shift(torch.randn(32, 8, generator=draw), draw)
        return F.mse_loss(model(x), y)

    run.train(before, 250)
    run.assert_undisturbed()
    run.train(after, 250)
    assert median(run.losses[250:256]) > 3 * median(run.losses[200:250])

    summary = run.opt.summary()
    assert summary["rollbacks"] == 0
    assert summary["skips"] <= Guard().max_skips
    assert summary["baseline_resets"] <= 1
    # Six in a row, all of them at the shift, or none: afterwards it is left alone.
    interventions = [event.call for event in run.opt.ledger if event.intervened]
    assert interventions == list(range(251, 251 + len(interventions)))
    assert len(interventions) in (0, Guard().max_skips + 1)
    assert median(run.losses[450:]) < median(run.losses[250:256]) / 2


# (b) the learning rate is raised


def by_hand(run, gamma):
    for group in run.opt.param_groups:
        group["lr"] *= gamma


@pytest.mark.parametrize("how", ["by hand", "StepLR"])
@pytest.mark.parametrize(("make", "lr"), [(adam, 3e-4), (momentum, 3e-3)])
def test_a_jump_of_the_learning_rate(make, lr, how, draw):
    model = mlp(16, 8)
    teacher = torch.randn(16, 8, generator=draw)
    run = Run(model, make, lr=lr)

    def loss_of(step):
        x = torch.randn(32, 16, generator=draw)
        return F.cross_entropy(model(x), (x @ teacher).argmax(1))

    if how == "StepLR":
        run.train(loss_of, 400, StepLR(run.opt, 200, gamma=10.0))
    else:
        run.train(loss_of, 200)
        by_hand(run, 10.0)
        run.train(loss_of, 200)
    assert run.opt.param_groups[0]["lr"] >= 10 * lr * 0.999
    assert median(run.losses[-50:]) < median(run.losses[150:200])
    run.assert_undisturbed()


# (c) nothing is left of the loss


@pytest.mark.parametrize(("make", "lr", "decay"), [(adam, 0.1, 0.991), (momentum, 0.01, 1.0)])
def test_a_loss_near_zero_may_do_what_it_likes(make, lr, decay, draw):
    weights = torch.randn(8, 1, generator=draw)
    model = nn.Linear(8, 1)
    run = Run(model, make, lr=lr)

    def loss_of(step):
        x = torch.randn(2, 8, generator=draw)
        return F.mse_loss(model(x), x @ weights)

    run.train(loss_of, 1000, ExponentialLR(run.opt, decay))
    late = [loss for loss in run.losses[-300:] if loss]
    assert median(late) < 1e-7
    assert max(late) > 100 * min(late)
    run.assert_undisturbed()


def test_a_loss_that_is_zero(draw):
    x = torch.randn(16, 4, generator=draw)
    model = nn.Linear(4, 1)
    run = Run(model, momentum, lr=0.1)

    def loss_of(step):
        margins = model(x) * x[:, :1].sign()
        return (0.1 - margins).clamp_min(0).mean() * (0.0 if step % 97 else 1.0)

    run.train(loss_of, 400)
    assert run.losses.count(0.0) > 300
    run.assert_undisturbed()


# (d) a few examples are learned by heart


@pytest.mark.parametrize(("hard", "size"), [("examples", 4), ("labels, wrong for once", 8)])
def test_learning_by_heart(hard, size, draw):
    model = mlp(16, 8, 96)
    x = torch.randn(192, 16, generator=draw)
    y = (x @ torch.randn(16, 8, generator=draw)).argmax(1)
    if hard == "examples":
        noisy = torch.randperm(192, generator=draw)[:16]
        y[noisy] = torch.randint(8, (16,), generator=draw)
    run = Run(model, adam, lr=2e-3)

    def loss_of(step):
        chosen = torch.randint(192, (size,), generator=draw)
        labels = y[chosen].clone()
        if hard != "examples" and step % 40 == 39:
            labels[0] = (labels[0] + 1) % 8
        return F.cross_entropy(model(x[chosen]), labels)

    run.train(loss_of, 900)
    assert median(run.losses[-300:]) < 0.1
    assert max(run.losses[-300:]) > 10 * median(run.losses[-300:])
    run.assert_undisturbed(left_out=SEEN_ONCE)


# (e) noise


def heavy_tails(draw):
    """Regress on two samples at a time, with noise that makes the loss's variance infinite."""
    model = mlp(8, 1)
    weights = torch.randn(8, 1, generator=draw)

    def loss_of(step):
        x = torch.randn(2, 8, generator=draw)
        return F.mse_loss(model(x), x @ weights + 0.3 * student((2, 1), 3, draw))

    return model, loss_of


def one_at_a_time(draw):
    """Classify one sample at a time: the loss is mostly near zero, and sometimes is not."""
    model = mlp(16, 8)
    teacher = torch.randn(16, 8, generator=draw)

    def loss_of(step):
        x = torch.randn(1, 16, generator=draw)
        return F.cross_entropy(model(x), (x @ teacher).argmax(1))

    return model, loss_of


def rare_class(draw):
    """Tell two classes apart, one of which is in every twelfth batch of eight."""
    model = mlp(16, 2)

    def loss_of(step):
        y = (torch.rand(8, generator=draw) < 0.01).long()
        return F.cross_entropy(model(torch.randn(8, 16, generator=draw) + 0.5 * y[:, None]), y)

    return model, loss_of


def different_lengths(draw):
    """Read between 2 and 32 symbols, in batches of one to four sequences."""
    embed, rnn, head = nn.Embedding(32, 16), nn.GRU(16, 32, batch_first=True), nn.Linear(32, 32)
    follows = torch.randint(32, (32, 3), generator=draw)

    def loss_of(step):
        count, length = (
            int(torch.randint(*span, (), generator=draw)) for span in ((1, 5), (2, 33))
        )
        text = [torch.randint(32, (count,), generator=draw)]
        for _ in range(length):
            text.append(follows[text[-1], torch.randint(3, (count,), generator=draw)])
        text = torch.stack(text, dim=1)
        logits = head(rnn(embed(text[:, :-1]))[0])
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())

    return nn.ModuleList([embed, rnn, head]), loss_of


@pytest.mark.parametrize(
    ("setting", "steps"),
    [(heavy_tails, 1000), (one_at_a_time, 1000), (rare_class, 1000), (different_lengths, 300)],
)
def test_noise(setting, steps, draw):
    model, loss_of = setting(draw)
    run = Run(model, adam)
    run.train(loss_of, steps)
    usual = median(run.losses[-300:])
    assert max(run.losses[-300:]) > (1.3 if setting is different_lengths else 5) * usual
    run.assert_undisturbed(left_out=SEEN_ONCE)


# (f) a loss without a lower bound


def critic(draw):
    """Tell two distributions apart, by as much as it can."""
    model = mlp(4, 1)

    def loss_of(step):
        real, fake = torch.randn(2, 16, 4, generator=draw)
        return model(fake).mean() - model(real + 0.5).mean()

    return model, loss_of


def likelihood(draw):
    """Fit a normal distribution to what has hardly any spread."""
    model = mlp(4, 8)
    mixing = torch.randn(4, 4, generator=draw)

    def loss_of(step):
        x = torch.randn(32, 4, generator=draw)
        mean, log_scale = model(x).chunk(2, dim=1)
        scale = 0.01 + log_scale.exp()
        return (scale.log() + 0.5 * ((x @ mixing - mean) / scale).square()).mean()

    return model, loss_of


@pytest.mark.parametrize("setting", [critic, likelihood])
def test_a_negative_loss_that_falls_without_end(setting, draw):
    model, loss_of = setting(draw)
    run = Run(model, adam, lr=1e-3)
    run.train(loss_of, 800)
    quarters = [median(run.losses[start : start + 200]) for start in range(0, 800, 200)]
    assert quarters == sorted(quarters, reverse=True)
    assert quarters[-1] < -1.0
    run.assert_undisturbed()
