"""Adapters of peft in the Trainer of transformers, kept under a norm."""

from __future__ import annotations

import pytest
import torch

from stableopt import LoRANormClamp
from stableopt.functional import lora_delta_norm
from tests.contract.bits import assert_same
from tests.contract.scenario import copied, seed_everything
from tests.integrations.worlds import Tokens, tiny_llama

# What transformers and peft warn of concerns themselves; what we warn of has tests of its own.
pytestmark = pytest.mark.filterwarnings("ignore")
works_with = pytest.mark.compatibility

LIMIT = 0.05


def adapted(**options):
    import peft

    seed_everything(0)
    config = peft.LoraConfig(
        r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **options
    )
    return peft.get_peft_model(tiny_llama(), config)


def train(directory, model, transforms=None, resume=None):
    import transformers

    from stableopt.integrations.transformers import StableTrainerCallback

    ours = None if transforms is None else StableTrainerCallback(transforms=transforms)
    seed_everything(0)
    arguments = transformers.TrainingArguments(
        output_dir=str(directory),
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        max_grad_norm=0.0,
        save_strategy="steps",
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Tokens(),
        callbacks=[] if ours is None else [ours],
    )
    trainer.train(resume_from_checkpoint=resume)
    return ours


def deltas(model):
    """Return the Frobenius norm of what each adapter adds to its weight, formed in full."""
    return {
        name: (layer.scaling["default"] * layer.lora_B.default.weight @ layer.lora_A.default.weight)
        .detach()
        .norm()
        .item()
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A")
    }


@works_with("PEFT", "LoRANormClamp")
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["lora", "rslora"])
def test_the_delta_stays_under_the_limit_and_only_adapters_move(tmp_path, options):
    free, clamped = adapted(**options), adapted(**options)
    before = copied({name: p.data for name, p in clamped.named_parameters()})
    train(tmp_path / "free", free)
    ours = train(tmp_path / "clamped", clamped, [LoRANormClamp(LIMIT)])
    assert max(deltas(free).values()) > 2 * LIMIT  # there was something to do
    assert len(deltas(clamped)) == 4
    for norm in deltas(clamped).values():
        assert 0 < norm <= LIMIT * (1 + 1e-6)
    for name, parameter in clamped.named_parameters():
        assert torch.equal(parameter, before[name]) != ("lora_" in name), name
    acts = [act for event in ours.optimizer.ledger for act in event.acts]
    assert {act.transform for act in acts} == {"LoRANormClamp"}
    assert ours.optimizer.summary()["transforms"][0]["parameters"] == 4


@works_with("PEFT", "bitwise")
def test_without_a_clamp_it_is_the_bare_trainer(tmp_path):
    results = []
    for name, transforms in (("bare", None), ("wrapped", ())):
        model = adapted()
        train(tmp_path / name, model, transforms)
        results.append(copied(model.state_dict()))
    assert_same(*results)


@works_with("PEFT", "resume")
def test_it_resumes_bit_for_bit(tmp_path):
    whole, resumed = adapted(), adapted()
    train(tmp_path, whole, [LoRANormClamp(LIMIT)])
    train(tmp_path, resumed, [LoRANormClamp(LIMIT)], resume=str(tmp_path / "checkpoint-3"))
    assert_same(copied(resumed.state_dict()), copied(whole.state_dict()))


def test_the_norm_is_that_of_the_scaled_product():
    """What the tests above measure in full is what the transform computes from the factors."""
    model = adapted()
    layer = next(layer for layer in model.modules() if hasattr(layer, "lora_A"))
    torch.nn.init.normal_(layer.lora_B.default.weight)
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    norm = lora_delta_norm(a, b, scale=layer.scaling["default"]).item()
    assert norm == pytest.approx(max(deltas(model).values()), rel=1e-5)
