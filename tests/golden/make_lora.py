#!/usr/bin/env python3
"""Makes lora.json: gradients of (A, B) and one step of Adam, by PEFT and PyTorch, on the tests' tiny model.

    pip install transformers torch gguf peft
    build/tests/make_tiny tiny.gguf && python3 make_lora.py tiny.gguf > lora.json

Parameters are in our order: layer by layer, q k v o gate up down, A [rank, in] then B [out, rank]; number i starts as 0.05 sin(0.7 i).
GGUF keeps the rows of q and k in another order than transformers does, so B's rows are put in GGUF's."""
import json
import math
import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

RANK, ALPHA, RATE, EVERY = 2, 4, 0.01, 13
PROMPT, REPLY = [40, 71, 33, 90, 12, 65], [55, 20, 101, 7, 88]
SITES = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def rows(n, heads):
    """rows(...)[i]: transformers' row that is GGUF's row i."""
    return torch.arange(n).reshape(heads, 2, n // heads // 2).transpose(1, 2).reshape(-1)


def main():
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    base = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    c = base.config
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[s.split(".")[1] for s in SITES], lora_dropout=0.0))
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    parts, at = [], 0
    for layer in model.base_model.model.model.layers:
        for site in SITES:
            module = layer.get_submodule(site)
            for which in (module.lora_A["default"].weight, module.lora_B["default"].weight):
                order = slice(None)
                if which is module.lora_B["default"].weight and site.split(".")[1] in heads:
                    order = rows(which.shape[0], heads[site.split(".")[1]])
                start = torch.tensor([0.05 * math.sin(0.7 * (at + i)) for i in range(which.numel())], dtype=torch.float64)
                with torch.no_grad():
                    which[order] = start.reshape(which.shape).float()
                parts.append((which, order))
                at += which.numel()
    optimiser = torch.optim.Adam([p for p, _ in parts], lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    ids = torch.tensor([PROMPT + REPLY])
    logprob = torch.log_softmax(model(ids).logits[0], -1)
    loss = -sum(logprob[len(PROMPT) - 1 + i, t] for i, t in enumerate(REPLY)) / len(REPLY)
    loss.backward()
    gradient = torch.cat([p.grad[o].reshape(-1) for p, o in parts])
    norms = [float(p.grad.norm()) for p, _ in parts]
    optimiser.step()
    after = torch.cat([p.detach()[o].reshape(-1) for p, o in parts])
    few = lambda x: [float(f"{v:.7g}") for v in x[::EVERY].tolist()]
    json.dump({"rank": RANK, "alpha": ALPHA, "rate": RATE, "every": EVERY, "prompt": PROMPT, "reply": REPLY, "loss": loss.item(), "n": gradient.numel(),
               "norms": [float(f"{v:.7g}") for v in norms], "gradient": few(gradient), "after": few(after)}, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
