#!/usr/bin/env python3
"""Steering vectors as their tools write them, of the tiny model's shape (4 layers, width 64), and what numpy makes of them: steering/.
persona.pt: torch.save of one tensor [layers + 1, d], as persona_vectors does; bf16.pt the same in bfloat16; transposed.pt: a view that is not contiguous;
dict.pt: under "vector" beside another; persona.safetensors; control.gguf: as repeng's export_gguf and llama.cpp's cvector-generator write it.
Needs torch, safetensors, gguf, numpy."""
import json
import os

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "steering")
os.makedirs(out, exist_ok=True)
rng = np.random.default_rng(5)
layers, d = 4, 64
v = rng.normal(size=(layers + 1, d)).astype(np.float32) * np.arange(1, layers + 2, dtype=np.float32)[:, None]
v[3] = 0  # nothing after layer 2
t = torch.from_numpy(v)
torch.save(t, os.path.join(out, "persona.pt"))
torch.save(t.to(torch.bfloat16), os.path.join(out, "bf16.pt"))
torch.save(torch.from_numpy(np.ascontiguousarray(v.T)).T, os.path.join(out, "transposed.pt"))
torch.save({"other": torch.zeros(3), "vector": t}, os.path.join(out, "dict.pt"))
save_file({"persona": t}, os.path.join(out, "persona.safetensors"))
w = gguf.GGUFWriter(os.path.join(out, "control.gguf"), "controlvector")
w.add_string("controlvector.model_hint", "llama")
w.add_uint32("controlvector.layer_count", layers - 1)
for layer in range(1, layers):
    w.add_tensor(f"direction.{layer}", v[layer + 1])
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()


def unit(x):
    x = x.astype(np.float64)
    n = float(np.linalg.norm(x))
    return {"length": n, "unit": [float(np.float32(e)) for e in x / n]}


b = t.to(torch.bfloat16).float().numpy()
with open(os.path.join(out, "expected.json"), "w") as f:
    json.dump({"f32": {str(layer): unit(v[layer + 1]) for layer in (0, 1, 3)}, "bf16": {"1": unit(b[2])}}, f)
    f.write("\n")
