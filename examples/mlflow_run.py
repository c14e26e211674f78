"""Log a run to MLflow, and tell another system of it under the same trial id.

Run it: ``python examples/mlflow_run.py``, then ``mlflow ui --backend-store-uri
sqlite:///mlflow.db``. Needs ``pip install 'stableopt[mlflow,events]'``.
"""

from __future__ import annotations

import torch
from mlflow import MlflowClient
from torch import nn

from stableopt import JsonLines, SpectralNormalization, StableOptimizer
from stableopt.integrations.mlflow import MLflowWriter
from stableopt.telemetry import LifecycleEvents, read_events, validate_event
from stableopt.testing import poison_batch

STORE = "sqlite:///mlflow.db"

torch.manual_seed(0)
x = torch.rand(4096, 8) * 2 - 1
y = torch.sin(3 * x).sum(dim=1, keepdim=True)
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1))

events = LifecycleEvents("runs/events.jsonl", trial_id="trial-7", model_run_id="sines")
tracker = MLflowWriter(experiment="sines", tracking_uri=STORE)  # or as MLflow is configured
opt = StableOptimizer(
    torch.optim.AdamW(model.parameters(), lr=3e-3),
    model=model,
    transforms=[SpectralNormalization(4.0)],
    telemetry=[JsonLines("runs/sines"), tracker, events],
)

for epoch in range(3):
    for step in range(60):
        rows = torch.randint(len(x), (64,))
        batch = x[rows], y[rows]
        if epoch == 1 and step == 20:
            batch = poison_batch(batch)
        opt.zero_grad()
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        loss.backward()
        opt.observe(loss=loss)
        opt.step()
    with torch.no_grad():
        events.metric(epoch=epoch, val_loss=nn.functional.mse_loss(model(x), y))
opt.close()

client = MlflowClient(STORE)
run = client.get_run(tracker.run_id)
print("run", run.info.status, "trial", run.data.tags["trial_id"])
print("lr", run.data.params["stable/lr"], "integrity", run.data.tags["stable.integrity"])
print("skips", run.data.metrics["stable/skips"])
print("because", run.data.tags["stable.last_intervention"])
print("artifacts", *(file.path for file in client.list_artifacts(tracker.run_id, "stable")))

for event in read_events("runs/events.jsonl"):
    validate_event(event)
    print(event["name"], event["metadata"]["trial_id"], list(event["measurements"])[:3])
