"""Training goes on from a checkpoint as if never stopped, refuses a foreign one, and exports a loadable folder."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finemoe.artifact.miniatures import training
from finemoe.artifact.miniatures.architectures import config_of
from finemoe.artifact.miniatures.corpus import conversations
from finemoe.errors import FinemoeError

pytestmark = pytest.mark.timeout(300)  # models are trained

SETTINGS = training.Settings("phi-mini", steps=2, batch=2, length=32, warmup_steps=1)


@pytest.fixture(scope="module")
def texts():
    documents = conversations(120, seed=0)
    return documents[:100], {"conversations": documents[100:]}


@pytest.fixture(autouse=True)
def shallow_models(monkeypatch):
    """Two layers instead of thirty-two; Phi's router samples while training, the hardest case for a resume."""

    def build(name, seed):
        config = config_of(name)
        config.num_hidden_layers = 2
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, experts_implementation="eager")

    monkeypatch.setattr(training, "build", build)


def trained(settings, folder, texts):
    trainer = training.Trainer(settings, folder, texts)
    trainer.run()
    return trainer


def test_resumed_equals_uninterrupted(tmp_path, texts):
    whole = trained(SETTINGS, tmp_path / "whole", texts)
    half = training.Trainer(SETTINGS, tmp_path / "parts", texts)
    half._train_step(0)
    half.step = 1
    half._save_checkpoint()
    resumed = trained(SETTINGS, tmp_path / "parts", texts)
    assert resumed.step == 2
    for (name, one), two in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name


def test_foreign_checkpoint_is_refused(tmp_path, texts):
    trained(SETTINGS, tmp_path, texts)
    with pytest.raises(FinemoeError, match=r"checkpoint\.pt: belongs to a run with other settings"):
        trained(replace(SETTINGS, seed=1), tmp_path, texts)


def test_training_lowers_the_loss(tmp_path, texts):
    trainer = training.Trainer(replace(SETTINGS, steps=30), tmp_path, texts)
    before = trainer.held_out_losses()["conversations"]
    assert before == pytest.approx(math.log(2048), abs=0.3)  # fresh weights know nothing: uniform over the vocabulary
    trainer.run()
    assert trainer.held_out_losses()["conversations"] < before - 1


def test_export_loads_as_any_model(tmp_path, texts):
    trainer = trained(SETTINGS, tmp_path / "run", texts)
    trainer.export(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert next(model.parameters()).dtype == torch.bfloat16
    expected = {name: weight.to(torch.bfloat16) for name, weight in trainer.model.state_dict().items()}
    assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(tmp_path / "model").padding_side == "left"
    facts = json.loads((tmp_path / "model" / "training.json").read_text())
    assert facts["tokens_seen"] == 2 * 2 * 32
    assert pd.read_csv(tmp_path / "model" / "training_curve.csv").step.iloc[-1] == 2


def test_rate_warms_up_and_falls():
    settings = training.Settings("phi-mini", steps=100, warmup_steps=10, peak_rate=1e-3)
    rates = [settings.rate(step) for step in range(100)]
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(5e-5, rel=0.05)


def test_settings_are_checked():
    with pytest.raises(FinemoeError, match="must be positive"):
        training.Settings("phi-mini", steps=0)
