"""Pre-trained language models: their hidden states, what is trained, and what is not read."""

import json
import re
import sys

import pytest
import torch
from torch import nn

from clplat.backbones.causal_lm import CausalLM
from clplat.backbones.classifier import classifier
from clplat.backbones.heads import single
from clplat.errors import InputError

transformers = pytest.importorskip("transformers")

KINDS = 256  # of token: the bytes


def tokens(*shape):
    return torch.randint(KINDS, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_features_are_the_models_last_hidden_states(llama, dtype):
    model, folder = llama
    encoder, x = CausalLM((9,), folder).eval(), tokens(3, 9)
    expected = model(x, output_hidden_states=True).hidden_states[-1]
    features = encoder(x.to(dtype))
    assert features.shape == (3, 9, encoder.width) == (3, 9, 12)
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(model.lm_head(features), model(x).logits, rtol=0, atol=1e-5)


def test_features_do_not_see_what_comes_later(llama):
    encoder, x = CausalLM((9,), llama[1]).eval(), tokens(2, 9)
    changed = x.clone()
    changed[:, 5:] = (x[:, 5:] + 1) % KINDS
    same = (encoder(x) - encoder(changed)).abs().amax((0, 2)) < 1e-6
    assert same.tolist() == [True] * 5 + [False] * 4


def test_weights_saved_in_half_precision_are_trained_in_single(llama, tmp_path):
    half = transformers.LlamaForCausalLM(llama[0].config).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    encoder = CausalLM((9,), str(tmp_path))
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("trainable", ["all", "head", "lora"])
def test_steps_lower_the_loss_and_train_what_they_should(llama, trainable):
    torch.manual_seed(0)
    encoder = CausalLM((8,), llama[1], trainable=trainable)
    model = classifier(encoder, single(encoder.width, KINDS))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    rows, losses = tokens(4, 9), []
    for _ in range(5):
        logits = model(rows[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.01
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert {"head.weight", "head.bias"} <= moved
    inner = {name for name in moved if name.startswith("encoder")}
    assert bool(inner) == (trainable != "head")
    if trainable == "lora":
        assert all(".lora_" in name for name in inner)


def test_adapters_change_nothing_at_first_and_are_few(llama):
    encoder, x = CausalLM((9,), llama[1], "lora", rank=3).eval(), tokens(3, 9)
    plain = CausalLM((9,), llama[1]).eval()
    assert torch.equal(encoder(x), plain(x))
    trained = sum(p.numel() for p in encoder.parameters() if p.requires_grad)
    linear = [m for m in plain.modules() if isinstance(m, nn.Linear)]
    assert trained == sum(3 * (m.in_features + m.out_features) for m in linear)


def test_a_moved_adapter_adds_twice_its_product(llama):
    encoder, plain = CausalLM((9,), llama[1], "lora", rank=3), CausalLM((9,), llama[1])
    adapted = encoder.model.layers[0].mlp.up_proj
    a, b = (getattr(adapted, f"lora_{side}")["default"].weight for side in "AB")
    with torch.no_grad():
        b.normal_(generator=torch.Generator().manual_seed(2))
        x, weight = torch.randn(4, 12), plain.model.layers[0].mlp.up_proj.weight
        torch.testing.assert_close(adapted(x), x @ (weight + 2 * b @ a).T)


def test_adapters_of_layers_that_lie_transposed(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=KINDS, n_embd=12, n_layer=1, n_head=3, n_positions=16
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    encoder, x = CausalLM((9,), str(tmp_path), "lora").eval(), tokens(2, 9)
    assert torch.equal(encoder(x), CausalLM((9,), str(tmp_path)).eval()(x))
    assert any(p.requires_grad for p in encoder.parameters())


def test_the_same_seed_draws_the_same_adapters(llama):
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(CausalLM((9,), llama[1], "lora").state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_missing_adapters_are_told(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        InputError, match=r"trainable=lora: needs the package peft.*'clplat\[text\]'"
    ):
        CausalLM((9,), llama[1], "lora")


def test_pickled_weights_are_refused(llama, tmp_path):
    llama[0].config.save_pretrained(tmp_path)
    torch.save(llama[0].state_dict(), tmp_path / "pytorch_model.bin")
    message = f"backbone.path={tmp_path}: no *.safetensors in it; expected config.json and weights"
    with pytest.raises(InputError, match=re.escape(message)):
        CausalLM((9,), str(tmp_path))


@pytest.mark.parametrize("path", ["somebody/some-model", "/no/such/folder"])
def test_what_is_not_on_this_machine_is_not_fetched(path):
    message = rf"backbone.path={path}: no such folder; expected one on this machine, for nothing "
    with pytest.raises(InputError, match=message + r"is fetched; download the model \(hf download"):
        CausalLM((9,), path)


def test_code_that_comes_with_a_model_is_not_run(llama, tmp_path):
    llama[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "theirs"
    config["auto_map"] = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "theirs.py").write_text("raise SystemExit('their code was run')")
    with pytest.raises(InputError, match="choose one whose code is in transformers itself"):
        CausalLM((9,), str(tmp_path))


def test_damaged_files_are_told(llama, tmp_path):
    llama[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(InputError, match=r"cannot load it as a causal language model \(.*fetch it"):
        CausalLM((9,), str(tmp_path))


def test_tokens_it_does_not_know_are_told(llama):
    message = f"knows tokens from 0 to {KINDS - 1}, and the data has {KINDS}; set scenario.tokenize"
    with pytest.raises(InputError, match=message):
        CausalLM((9,), llama[1])(torch.full((1, 9), KINDS))


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((17,), {}, "has 16 positions, and the scenario's samples have 17 tokens; lower scenario."),
        (
            (3, 8, 8),
            {},
            r"backbone=causal_lm: reads tokens \(T,\), and the scenario gives \(3, 8, ",
        ),
        ((9,), {"rank": 0}, "backbone.rank=0: expected at least 1; raise it"),
        (
            (9,),
            {"trainable": "none"},
            "backbone.trainable=none: expected one of all, head, lora; choose",
        ),
    ],
)
def test_what_does_not_fit_is_told(llama, shape, settings, message):
    with pytest.raises(InputError, match=message):
        CausalLM(shape, llama[1], **settings)


def test_a_missing_package_is_told(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs the package transformers.*'clplat\[text\]'"):
        CausalLM((9,), llama[1])


@pytest.mark.parametrize(
    "strategy", ["finetune backbone.trainable=head", "derpp", "gere backbone.trainable=lora"]
)
def test_a_run_trains_it_on_texts(llama, command, strategy):
    sizes = "scenario.window=16 scenario.samples=16 scenario.test_samples=4 train.epochs=1"
    model = f"backbone=causal_lm backbone.path={llama[1]}"
    outcome = command(f"scenario=text {model} {sizes} strategy={strategy} out=runs/a")
    assert outcome.status == 0, outcome.err
    assert "negative bits per character" in outcome.err + outcome.out
