#!/usr/bin/env python3
"""Writes families/NAME/points.safetensors for the tiny models that make_families.py wrote: on its ids, what forward hooks see in layers 1 and the last:
"attention.N" what goes into self_attn.o_proj; "attention_out.N" what attention adds to the residual, "mlp_out.N" what the MLP adds: the outputs of
o_proj and mlp, or in families with a norm behind them (post_attention_layernorm, post_feedforward_layernorm) of that norm.

    pip install torch transformers safetensors; python3 make_points.py families
"""
import os
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

for name in sorted(os.listdir(sys.argv[1])):
    folder = os.path.join(sys.argv[1], name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = load_file(os.path.join(folder, "golden.safetensors"))["ids"].long()
    layers, out, stream = model.model.layers, {}, {}

    def keep(key, first=False):
        def hook(module, inputs, output=None):
            x = inputs[0] if first else output
            out[key] = (x[0] if isinstance(x, tuple) else x)[0].detach().contiguous()
        return hook

    for n in (1, len(layers) - 1):
        layer = layers[n]
        after = hasattr(layer, "post_feedforward_layernorm")
        layer.self_attn.o_proj.register_forward_hook(keep(f"attention.{n}", True))
        (layer.post_attention_layernorm if after else layer.self_attn.o_proj).register_forward_hook(keep(f"attention_out.{n}"))
        (layer.post_feedforward_layernorm if after else layer.mlp).register_forward_hook(keep(f"mlp_out.{n}"))
        layer.register_forward_hook(lambda m, i, o, n=n: stream.__setitem__(n, (i[0][0], (o[0] if isinstance(o, tuple) else o)[0])))
    with torch.no_grad():
        model(ids[None])
    for n, (x, y) in stream.items():  # the two are all that a block adds
        torch.testing.assert_close(x + out[f"attention_out.{n}"] + out[f"mlp_out.{n}"], y, rtol=1e-5, atol=1e-5)
    save_file(out, os.path.join(folder, "points.safetensors"))
    print(name, {k: tuple(v.shape) for k, v in out.items()})
