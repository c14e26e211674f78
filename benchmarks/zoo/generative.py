"""Models that make something: adversaries, codebooks, and Gaussians that split and vanish."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.zoo.harness import Run, training
from benchmarks.zoo.parts import Clusters, mlp
from stableopt import StableOptimizer


@training("distance of mean and covariance", at_most=0.35)
def gan(run: Run) -> float:
    """A GAN on a ring in the plane, and a wrapper around each of its two optimizers."""
    turns = torch.arange(5) * (2 * torch.pi / 5)
    ring = torch.stack([turns.cos(), 0.6 * turns.sin()], dim=1)
    maker, critic = mlp(4, 32, 32, 2, activation=nn.ReLU), mlp(2, 32, 32, 1, activation=nn.ReLU)
    average = AveragedModel(maker, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    makes = run.wrap(torch.optim.Adam(maker.parameters(), 1e-3, betas=(0.5, 0.9)), maker)
    judges = run.wrap(torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.9)), critic)
    makes.track(average=average)

    def real(size: int) -> Tensor:
        return ring[run.randint(5, size)] + 0.1 * run.randn(size, 2)

    distances = []
    for step in range(700):
        made, given = maker(run.randn(64, 4)), real(64)
        says = functional.softplus(critic(made.detach())) + functional.softplus(-critic(given))
        run.step(judges, says.mean())
        run.step(makes, functional.softplus(-critic(made)).mean())
        average.update_parameters(maker)
        if step >= 500 and step % 10 == 9:
            with torch.no_grad():
                distances.append(_moments_apart(average(run.randn(1024, 4)), real(4096)))
    return sum(distances) / len(distances)


def _moments_apart(made: Tensor, given: Tensor) -> float:
    mean = (made.mean(0) - given.mean(0)).norm()
    return float(mean + (made.T.cov() - given.T.cov()).norm())


class _Codebook(nn.Module):
    """An autoencoder whose codes are the nearest of a codebook, which follows them by averages."""

    codes: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, size: int = 32, width: int = 4) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(16, 48, width), mlp(width, 48, 16)
        self.register_buffer("codes", torch.randn(size, width))
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is made of the samples, and how far they are from their codes."""
        z = self.encoder(x)
        chosen = torch.cdist(z.detach(), self.codes).argmin(1)
        code = self.codes[chosen]
        if self.training:
            self._follow(z.detach(), chosen)
        return self.decoder(z + (code - z).detach()), functional.mse_loss(z, code)

    def _follow(self, z: Tensor, chosen: Tensor) -> None:
        used = functional.one_hot(chosen, len(self.codes)).float()
        self.counts.lerp_(used.sum(0), 0.05)
        self.sums.lerp_(used.T @ z, 0.05)
        dead = self.counts < 0.05  # a code that nobody chooses begins anew where somebody is
        fresh = z[torch.randint(len(z), (len(self.codes),))]
        self.counts.masked_fill_(dead, 1.0)
        self.sums.copy_(torch.where(dead[:, None], fresh, self.sums))
        self.codes.copy_(self.sums / self.counts[:, None])


@training("squared error of new samples", at_most=0.4)
def codebook(run: Run) -> float:
    """A VQ autoencoder: its codebook is buffers that follow averages, and dead codes begin anew."""
    clusters = Clusters(run, 24, spread=0.3)
    model = _Codebook()
    optimizer = run.wrap(torch.optim.AdamW(model.parameters(), 2e-3), model)
    for _ in range(900):
        x, _ = clusters.draw(32)
        made, apart = model(x)
        run.step(optimizer, functional.mse_loss(made, x) + 0.25 * apart)
    model.eval()
    with torch.no_grad():
        x, _ = clusters.draw(8192)
        return float(functional.mse_loss(model(x)[0], x))


class _Splats(nn.Module):
    """A picture as a sum of Gaussians, in parameters that have one row for each.

    Args:
        count: Of Gaussians in the beginning.
    """

    side = 20

    def __init__(self, count: int) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.rand(count, 2))
        self.size = nn.Parameter(torch.full((count, 2), -2.0))
        self.colour = nn.Parameter(torch.rand(count, 3))
        self.opacity = nn.Parameter(torch.zeros(count, 1))
        places = (torch.arange(self.side) + 0.5) / self.side
        self.register_buffer("places", torch.cartesian_prod(places, places))

    def forward(self) -> Tensor:
        """Return the picture, one row for each pixel."""
        away = (self.places[:, None] - self.at) / self.size.exp()
        weight = (-0.5 * away.square().sum(2)).exp() * self.opacity.sigmoid()[:, 0]
        return weight @ self.colour

    @torch.no_grad()
    def density(self, optimizer: StableOptimizer, moved: Tensor) -> None:
        """Drop Gaussians that are hardly seen, and split those that are pulled most.

        Args:
            optimizer: Its parameters are replaced, and its moments moved along.
            moved: How far each was pulled, on average.
        """
        seen = self.opacity.sigmoid()[:, 0] > 0.05
        wanted = seen & (moved > moved.quantile(0.75)) & (len(moved) < 60)
        for group in optimizer.param_groups:
            name, old = group["name"], group["params"][0]
            more = old[wanted]
            if name == "at":
                more = more + 0.5 * self.size[wanted].exp() * torch.randn_like(more)
            new = nn.Parameter(torch.cat([old[seen], more]))
            state: dict[str, Any] = optimizer.state.pop(old, {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    kept = state[moment]
                    state[moment] = torch.cat([kept[seen], torch.zeros_like(kept[wanted])])
            optimizer.state[new] = state
            group["params"][0] = new
        for group in optimizer.param_groups:
            setattr(self, group["name"], group["params"][0])

    @torch.no_grad()
    def fade(self, optimizer: StableOptimizer) -> None:
        """Make everything nearly transparent, so that what is not needed stays so."""
        self.opacity.clamp_(max=-1.5)
        state = optimizer.state[self.opacity]
        state["exp_avg"].zero_()
        state["exp_avg_sq"].zero_()


@training("squared error of the picture", at_most=0.005)
def splats(run: Run) -> float:
    """A picture of Gaussians that are split and dropped: parameters are replaced every 50 steps."""
    picture = _picture(run)
    model = _Splats(12)
    rates = {"at": 5e-3, "size": 2e-2, "colour": 2e-2, "opacity": 5e-2}
    groups = [{"params": [getattr(model, n)], "name": n, "lr": lr} for n, lr in rates.items()]
    optimizer = run.wrap(torch.optim.Adam(groups, eps=1e-15), model)
    pulled = torch.zeros(12)
    for step in range(1, 701):
        run.step(optimizer, functional.mse_loss(model(), picture))
        if model.at.grad is not None:
            pulled += model.at.grad.norm(dim=1)
        if step % 50 == 0 and step <= 450:
            model.density(optimizer, pulled)
            pulled = torch.zeros(len(model.at))
        if step == 250:
            model.fade(optimizer)
    with torch.no_grad():
        return float(functional.mse_loss(model(), picture))


def _picture(run: Run) -> Tensor:
    """Return rings and stripes in three colours, one row for each pixel."""
    places = (torch.arange(_Splats.side) + 0.5) / _Splats.side
    x, y = torch.cartesian_prod(places, places).unbind(1)
    centre = torch.rand(2, generator=run.world)
    ring = (12 * ((x - centre[0]).square() + (y - centre[1]).square()).sqrt()).sin()
    return torch.stack([0.5 + 0.5 * ring, 0.5 + 0.5 * (9 * x).sin(), (x * y).sqrt()], dim=1)
