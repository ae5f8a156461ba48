#!/usr/bin/env python3
"""sparsity/sparsity.safetensors as SAELens writes it (sae_lens.training.sae_trainer: log10 of the frequency plus 1e-10), and the frequencies. Needs sae-lens."""
import json
import os

import torch
from sae_lens.training.sae_trainer import _log_feature_sparsity
from safetensors.torch import save_file

out = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sparsity")
os.makedirs(out, exist_ok=True)
f = torch.tensor([0.0, 1.0, 0.5, 1e-3, 2.5e-5, 3e-7, 0.123456])
save_file({"sparsity": _log_feature_sparsity(f)}, os.path.join(out, "sparsity.safetensors"))
with open(os.path.join(out, "expected.json"), "w") as g:
    json.dump([float(x) for x in f], g)
    g.write("\n")
