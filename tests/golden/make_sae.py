#!/usr/bin/env python3
"""Golden dictionaries: small SAELens folders, written and run by SAELens itself.

usage: make_sae.py OUT    (OUT: tests/golden/sae; needs sae-lens and torch)

Each folder gets cfg.json, sae_weights.safetensors and golden.safetensors: x [T, d], acts [T, F], xhat [T, d].
"""
import os
import sys

import torch
from safetensors.torch import save_file
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

D, F, T = 24, 40, 7
CASES = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "standard-no-b-dec": (StandardSAE, StandardSAEConfig, {"apply_b_dec_to_input": False}),
    "standard-layer-norm": (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
    "standard-average": (StandardSAE, StandardSAEConfig, {"normalize_activations": "expected_average_only_in"}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5}),
    "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "jumprelu-constant-norm": (JumpReLUSAE, JumpReLUSAEConfig, {"normalize_activations": "constant_norm_rescale"}),
}


def main(out):
    for seed, (name, (cls, config, extra)) in enumerate(CASES.items()):
        g = torch.Generator().manual_seed(seed)
        cfg = config(d_in=D, d_sae=F, dtype="float32", device="cpu", **extra)
        cfg.metadata.model_name = "tiny"
        cfg.metadata.hook_name = "blocks.3.hook_resid_post"
        sae = cls(cfg)
        with torch.no_grad():
            for p_name, p in sae.named_parameters():
                p.copy_(torch.randn(p.shape, generator=g) * (0.3 if "W_" in p_name else 0.2))
            if hasattr(sae, "threshold"):
                sae.threshold.copy_(torch.rand(F, generator=g))
            sae.W_dec *= 0.5 + torch.rand(F, 1, generator=g)  # rows of unlike norms
            x = torch.randn(T, D, generator=g) * 3 + 0.5
            folder = os.path.join(out, name)
            sae.save_inference_model(folder) if hasattr(sae, "save_inference_model") else sae.save_model(folder)
            sae = SAE.load_from_disk(folder, device="cpu")
            acts = sae.encode(x)
            xhat = sae.decode(acts)
        save_file({"x": x.contiguous(), "acts": acts.contiguous(), "xhat": xhat.contiguous()}, os.path.join(folder, "golden.safetensors"))
        print(name, sorted(os.listdir(folder)), f"{(acts > 0).sum(1).float().mean():.1f} active")


main(sys.argv[1])
