"""Adapters go both ways between minedge and peft: same logits, same gradients, same number of trained parameters.

Runs where torch, transformers and peft are installed: python -m pytest -m oracle tests/oracle/test_peft.py
"""

from __future__ import annotations

import numpy as np
import pytest

from minedge import lora
from tests.methods.common import model, tokens, with_random_adapters

pytestmark = pytest.mark.oracle

TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}
METHODS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "rsdora": {"use_dora": True, "use_rslora": True},
}
CASES = [(architecture, method) for architecture in TARGETS for method in METHODS]


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    torch.set_num_threads(1)
    return torch


def base_pair(folder, architecture):
    """One set of random weights here and in transformers."""
    from transformers import AutoModelForCausalLM

    base = model(architecture)
    base.save(folder)
    return base, AutoModelForCausalLM.from_pretrained(folder).eval()


def adapted_here(base, architecture, method, **options):
    """An adapter as after some training: every array of it random, DoRA's lengths near where they started."""
    adapted = lora.add(base, r=4, lora_alpha=6, target=TARGETS[architecture], **METHODS[method], **options)
    started = {name: adapted.params[name] for name in adapted.trainable_names if "magnitude" in name}
    adapted = with_random_adapters(adapted, 0.2)
    lengths = {name: start * (1 + 0.3 * adapted.params[name]) for name, start in started.items()}
    return adapted.with_params({**adapted.params, **lengths})


def logits_there(torch, there, ids):
    with torch.no_grad():
        return there(torch.tensor(ids)).logits.numpy()


@pytest.mark.parametrize("architecture, method", CASES)
def test_adapters_made_here_load_in_peft(tmp_path, torch, architecture, method):
    from peft import PeftModel

    base, there = base_pair(tmp_path / "base", architecture)
    adapted = adapted_here(base, architecture, method)
    lora.save_adapter(adapted, tmp_path / "a")
    there = PeftModel.from_pretrained(there, tmp_path / "a").eval()
    ours, theirs = adapted.logits(tokens()), logits_there(torch, there, tokens())
    assert np.abs(ours - base.logits(tokens())).max() > 0.1  # the adapter does something
    assert np.abs(ours - theirs).max() < 1e-4
    merged = there.merge_and_unload()
    assert np.abs(lora.merge(adapted).logits(tokens()) - logits_there(torch, merged, tokens())).max() < 1e-4


@pytest.mark.parametrize("architecture, method", CASES)
def test_adapters_made_by_peft_load_here(tmp_path, torch, architecture, method):
    from peft import LoraConfig, get_peft_model

    base, there = base_pair(tmp_path / "base", architecture)
    first = TARGETS[architecture][0]
    there = get_peft_model(
        there,
        LoraConfig(
            r=4, lora_alpha=6, target_modules=TARGETS[architecture], task_type="CAUSAL_LM",
            rank_pattern={first: 2}, alpha_pattern={rf"1\..*{TARGETS[architecture][1]}": 3},
            fan_in_fan_out=architecture == "gpt2", **METHODS[method],
        ),
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in there.named_parameters():
            if "lora_magnitude" in name:
                p.mul_(1 + 0.1 * torch.rand(p.shape, generator=generator))
            elif "lora_" in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    there.save_pretrained(tmp_path / "a")
    adapted = lora.load_adapter(base, tmp_path / "a")
    assert len({(layer.r, layer.lora_alpha) for layer in adapted.linears.values() if layer.is_adapter}) == 3
    theirs = logits_there(torch, there, tokens())
    assert np.abs(theirs - base.logits(tokens())).max() > 0.1
    assert np.abs(adapted.logits(tokens()) - theirs).max() < 1e-4
    lora.save_adapter(adapted, tmp_path / "b")  # and out again, patterns included
    from peft import PeftModel

    plain = base_pair(tmp_path / "again", architecture)[1]
    again = PeftModel.from_pretrained(plain, tmp_path / "b").eval()
    assert np.abs(logits_there(torch, again, tokens()) - theirs).max() < 1e-4


@pytest.mark.parametrize("architecture, method", CASES)
def test_gradients_and_counts_are_pefts(tmp_path, torch, architecture, method):
    """One loss, the gradient of every trained array; as many numbers are trained as the paper's formula says."""
    from peft import PeftModel

    base, there = base_pair(tmp_path / "base", architecture)
    adapted = adapted_here(base, architecture, method)
    lora.save_adapter(adapted, tmp_path / "a")
    there = PeftModel.from_pretrained(there, tmp_path / "a", is_trainable=True).train()
    ids = torch.tensor(tokens())
    for module in there.modules():  # GPT-2's dropout
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    there(ids, labels=ids).loss.backward()
    _, grads = adapted.loss_and_grads(tokens())
    theirs = {name: p.grad.numpy() for name, p in there.named_parameters() if p.requires_grad}
    assert len(theirs) == len(grads)
    for name, grad in grads.items():
        their = theirs[f"base_model.model.{name}"]
        assert np.abs(grad - their).max() <= 1e-4 * max(1e-3, np.abs(their).max()), name
    formula = sum(
        4 * (out + width) + (out if "use_dora" in METHODS[method] else 0)
        for out, width in (base.params[f"{n}.weight"].shape for n, k in adapted.linears.items() if k.is_adapter)
    )
    assert lora.count(adapted) == formula == there.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("architecture", TARGETS)
def test_stacking_is_pefts_cat(tmp_path, torch, architecture):
    from peft import PeftModel

    base, there = base_pair(tmp_path / "base", architecture)
    for name, seed in (("a", 1), ("b", 2)):
        one = with_random_adapters(lora.add(base, r=3, target=TARGETS[architecture], adapter=name), 0.2, seed)
        lora.save_adapter(one, tmp_path / name)
    both = lora.load_adapter(lora.load_adapter(base, tmp_path / "a", "a"), tmp_path / "b", "b")
    ours = lora.stack(both, {"a": 0.7, "b": 0.3}).logits(tokens())
    there = PeftModel.from_pretrained(there, tmp_path / "a", adapter_name="a")
    there.load_adapter(tmp_path / "b", adapter_name="b")
    there.add_weighted_adapter(["a", "b"], [0.7, 0.3], "sum", combination_type="cat")
    there.set_adapter("sum")
    assert np.abs(ours - logits_there(torch, there.eval(), tokens())).max() < 1e-4
    assert np.abs(ours - lora.merge(both, {"a": 0.7, "b": 0.3}).logits(tokens())).max() < 1e-4
