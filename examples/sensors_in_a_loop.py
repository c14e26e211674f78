"""Watch the spectra of a model while it trains, and see a layer collapse before the loss does.

Run it: ``python examples/sensors_in_a_loop.py``.
"""

from __future__ import annotations

import torch
from torch import nn

from stableopt import StableOptimizer
from stableopt.sensors import ConditionNumber, SampledSpectrum, Sampler, Sensors, SpectralNorm

torch.manual_seed(0)
x = torch.rand(4096, 32) * 2 - 1
y = torch.sin(3 * x).sum(dim=1, keepdim=True)

model = nn.Sequential(
    nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 1)
)
opt = StableOptimizer(
    torch.optim.AdamW(model.parameters(), lr=1e-3),
    model=model,  # names in what is told
    sensors=Sensors(
        # The default two, and the exact condition number for whatever they suspect.
        use=(SpectralNorm(), SampledSpectrum(), ConditionNumber()),
        sampler=Sampler(ratio=1 / 2, every=5),  # these steps are tiny; the default is 1/8 and 10
        budget=None,  # so much of so little time is more than the default share of 1%
    ),
)

level = None
for step in range(600):
    rows = torch.randint(len(x), (64,))
    opt.zero_grad()
    loss = nn.functional.mse_loss(model(x[rows]), y[rows])
    loss.backward()
    opt.observe(loss=loss)
    opt.step()
    if step >= 300:  # a bug: every step pulls the rows of one layer towards their mean
        with torch.no_grad():
            model[2].weight.lerp_(model[2].weight.mean(dim=0).expand_as(model[2].weight), 0.02)
    if opt.risk != level:
        level = opt.risk
        print(f"step {step:3d}  loss {loss.item():.3f}  risk {level.value}")

for event in opt.ledger:
    print(f"step {event.step}: {event.reason}")
print("\nthe newest readings of 2.weight:")
for metric, reading in opt.readings["2.weight"].items():
    print(f"  {metric:20s} {reading.value:10.4g}  {reading.standing.value}")
