"""Called by test_exchange.sh in its folder: the peers load what was exported and compute the same."""
import json
import sys

import numpy as np
import torch

TOLERANCE = 1e-3
base, lora, bias = (json.load(open(n + ".json")) for n in ("base", "lora", "bias"))
ids = base["tokens"]


def differ(name, got, want):
    worst = max(abs(a - b) for a, b in zip(got[1:], want["logprobs"][1:]))
    print(f"{name}: largest difference of a log-probability {worst:.2e}")
    assert worst < TOLERANCE, name


moved = max(abs(a - b) for a, b in zip(base["logprobs"][1:], lora["logprobs"][1:]))
moved_bias = max(abs(a - b) for a, b in zip(base["logprobs"][1:], bias["logprobs"][1:]))
print(f"the adapters move log-probabilities by up to {moved:.3f} and {moved_bias:.3f}")
assert moved > 5 * TOLERANCE and moved_bias > 5 * TOLERANCE  # else nothing is shown

# ---- peft + transformers ----
from peft import PeftModel
from transformers import AutoModelForCausalLM


def torch_logprobs(model, hook=None):
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float()
    lp = torch.log_softmax(logits, -1)
    return [None] + [float(lp[i, ids[i + 1]]) for i in range(len(ids) - 1)]


model = AutoModelForCausalLM.from_pretrained(".", gguf_file="tiny.gguf", dtype=torch.float32)
differ("transformers, base", torch_logprobs(model), base)
persona = torch.load("bias.pt", weights_only=True)
from safetensors.torch import load_file

assert torch.equal(persona, load_file("persona.safetensors")["vector"])
assert persona.shape == (len(model.model.layers) + 1, model.config.hidden_size) and not persona[0].any()
handles = [layer.register_forward_hook(lambda m, i, o, v=persona[n + 1]: (o[0] + v, *o[1:]) if isinstance(o, tuple) else o + v) for n, layer in enumerate(model.model.layers)]
differ("persona tensor, added by hooks", torch_logprobs(model), bias)
for h in handles:
    h.remove()
differ("peft", torch_logprobs(PeftModel.from_pretrained(model, "peft")), lora)

# ---- llama-cpp-python ----
import ctypes

import llama_cpp
from gguf import GGUFReader


def llama_logprobs(**options):
    cvec = options.pop("cvec", None)
    m = llama_cpp.Llama(model_path="tiny.gguf", n_ctx=len(ids) + 8, logits_all=True, verbose=False, type_k=0, type_v=0, **options)
    if cvec is not None:
        flat = np.ascontiguousarray(cvec, dtype=np.float32)
        n, d = flat.shape
        data = flat.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        set_cvec = getattr(llama_cpp, "llama_set_adapter_cvec", None) or llama_cpp.llama_apply_adapter_cvec
        assert set_cvec(m._ctx.ctx, data, n * d, d, 1, n) == 0
    m.eval(ids)
    logits = torch.tensor(m.scores[: len(ids)])
    lp = torch.log_softmax(logits, -1)
    return [None] + [float(lp[i, ids[i + 1]]) for i in range(len(ids) - 1)]


differ("llama.cpp, base", llama_logprobs(), base)
differ("llama.cpp, GGUF LoRA", llama_logprobs(lora_path="lora.gguf"), lora)
r = GGUFReader("bias.gguf")
n_layer = len(model.model.layers)
vectors = np.zeros((n_layer, model.config.hidden_size), np.float32)  # row N - 1: direction.N
for t in r.tensors:
    vectors[int(t.name.split(".")[1]) - 1] = np.array(t.data)
differ("llama.cpp, control vector", llama_logprobs(cvec=vectors), bias)

# ---- dictionaries that were written in other formats, from their formulas ----
x = torch.randn(50, model.config.hidden_size) * 3


def jumprelu(w_enc, b_enc, threshold):
    p = x @ torch.as_tensor(np.asarray(w_enc, np.float32)) + torch.as_tensor(np.asarray(b_enc, np.float32))
    return torch.relu(p) * (p > torch.as_tensor(np.asarray(threshold, np.float32)))


own = load_file("dict/sae_weights.safetensors")
want = jumprelu(own["W_enc"], own["b_enc"].float() - own["b_dec"].float() @ own["W_enc"].float(), own["threshold"])
z = np.load("layer_1-gemma/params.npz", allow_pickle=False)
g2 = load_file("layer_1-gemma-scope-2/params.safetensors")
pt = torch.load("layer_1-dictionary-learning/ae.pt", weights_only=True)
llama = load_file("layer_1-llama-scope/checkpoints/final.safetensors")
hyper = json.load(open("layer_1-llama-scope/hyperparams.json"))
s = model.config.hidden_size**0.5 / hyper["dataset_average_activation_norm"]["in"]
for name, acts in {
    "Gemma Scope": jumprelu(z["W_enc"], z["b_enc"], z["threshold"]),
    "Gemma Scope 2": jumprelu(g2["w_enc"], g2["b_enc"], g2["threshold"]),
    "dictionary_learning": jumprelu(pt["encoder.weight"].T, pt["encoder.bias"] - pt["b_dec"] @ pt["encoder.weight"].float().T, pt["threshold"]),
    "Llama Scope": jumprelu(llama["encoder.weight"].T * s, llama["encoder.bias"], hyper["jump_relu_threshold"] * s),
}.items():
    worst = float((acts - want).abs().max() / want.max())
    print(f"{name}: largest difference {worst:.1e} of the largest activation")
    assert want.max() > 0 and worst < 1e-4, name

# ---- numpy, sae-lens ----
z = np.load("brief.npz", allow_pickle=False)
assert z["basis"].shape == (3, model.config.hidden_size) and z["feature"].tolist() == [5, 7, 11]
assert np.allclose(np.linalg.norm(z["basis"], axis=1), 1, atol=1e-5)
one = GGUFReader("five.gguf").tensors[0]
assert one.name == "direction.1" and np.allclose(np.array(one.data), 3 * z["basis"][0])
assert np.array_equal(load_file("brief.safetensors")["directions"].numpy(), z["basis"])
try:
    from sae_lens import SAE
except ImportError:
    print("sae-lens is not here: it was not asked")
    sys.exit(0)
import os

golden = os.environ["ESPALIER_TEST_DIR"] + "/golden/sae/dictionary-learning/"
for kind in ("GatedAutoEncoder", "AutoEncoderTopK"):  # written by torch, converted, read by sae-lens
    g = load_file(f"{golden}{kind}/trainer_0/golden.safetensors")
    assert (SAE.load_from_disk("lens-" + kind).encode(g["x"]) - g["acts"]).abs().max() < 1e-4 * g["acts"].max(), kind
for kind in ("GatedAutoEncoder", "AutoEncoderTopK"):  # and back: the state_dict that torch wrote
    a, b = (torch.load(p + "/ae.pt", weights_only=True) for p in (f"{golden}{kind}/trainer_0", "back-" + kind))
    assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a if k != "threshold"), kind
whole, few = SAE.load_from_disk("dict"), SAE.load_from_disk("brief-sae")
assert (whole.encode(x)[:, [5, 7, 11]] - few.encode(x)).abs().max() < 1e-4 * whole.encode(x).max()
again = SAE.load_from_disk("again")
assert (whole.encode(x) - again.encode(x)).abs().max() < 1e-3 * whole.encode(x).max()
assert few.cfg.metadata.hook_name == "blocks.1.hook_resid_post"
print("sae-lens reads the folders")
