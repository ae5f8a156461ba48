#!/usr/bin/env python3
"""Trains a BatchTopK dictionary by sae-lens on the very activations of an `espalier harvest`, within a number of seconds: the peer in docs/dictionary.md.

usage: train_saelens.py HARVEST OUT --layer L --features F --k K --seconds S [--tokens N] [--batch N] [--rate R] [--threads N]

sae-lens' own trainer, loss, auxiliary loss, threshold and defaults (Adam at 3e-4, input scaled by expected_average_only_in, decoder rows of norm 0.1 at the start);
warm-up over 3 % and a linear fall over the last fifth of the run. What espalier leaves out it leaves out too: first tokens are not in a harvest, and rows longer than six times the median
(attention sinks) are dropped. How many tokens fit into S seconds is measured first, outside of them. OUT becomes a SAELens folder, which `espalier dictionary
stats` and `evaluate` read. --tokens: so many instead, for the same run at another rate on a machine that is not quiet. Prints a line of JSON: tokens, seconds, steps. Needs sae-lens 6 (pip install sae-lens).
"""
import argparse
import json
import os
import time

import numpy as np
import torch

os.environ.setdefault("WANDB_MODE", "disabled")
from safetensors.torch import load_file, save_file
from sae_lens import SAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer


def rows(folder, layer):
    """All rows of a layer, f16, without the sinks."""
    with open(os.path.join(folder, "harvest.json")) as f:
        info = json.load(f)
    place = os.path.join(folder, f"layer-{layer:02d}")
    shards = [np.fromfile(os.path.join(place, name), dtype="<f2").reshape(-1, info["d"]) for name in sorted(os.listdir(place))]
    x = np.concatenate(shards)[: info["rows"]]
    norm = np.linalg.norm(x.astype(np.float32), axis=1)
    return x[norm <= 6 * np.median(norm[:: max(1, len(norm) // 65536)])], info


def batches(x, size, seed):
    order = np.random.default_rng(seed)
    while True:
        at = order.permutation(len(x))
        for i in range(0, len(x) - size + 1, size):
            yield torch.from_numpy(x[at[i : i + size]].astype(np.float32))


def trainer(o, x, info, tokens):
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(
        d_in=x.shape[1], d_sae=o.features, k=float(o.k), dtype="float32", device="cpu", normalize_activations="expected_average_only_in", apply_b_dec_to_input=True))
    steps = max(1, tokens // o.batch)
    cfg = SAETrainerConfig(total_training_samples=steps * o.batch, train_batch_size_samples=o.batch, lr=o.rate, lr_end=o.rate / 10, lr_warm_up_steps=steps * 3 // 100,
                           lr_decay_steps=steps // 5, dead_feature_window=max(20, 200000 // o.batch), n_batches_for_norm_estimate=10)
    return SAETrainer(cfg, sae, batches(x, o.batch, 1))


def speed(o, x, info):
    """Tokens a second of a trainer that is thrown away."""
    t = trainer(o, x, info, 100 * o.batch)
    t.step(next(t.data_provider))  # the first is slower
    began = time.monotonic()
    for _ in range(5):
        t.step(next(t.data_provider))
    return 5 * o.batch / (time.monotonic() - began)


def settle_threshold(folder, x, k):
    """Its threshold follows the batches' smallest activation by a moving average, which lags in a short run (L0 of 79 instead of 32 after 221 steps). So that L0 is
    equal, it is set to what keeps k activations a token on rows of the harvest; the L0 that it had is returned."""
    sae = SAE.load_from_disk(folder, device="cpu")
    with torch.no_grad():
        some = torch.from_numpy(x[:: max(1, len(x) // 8192)].astype(np.float32))
        before = (sae.encode(some) > 0).sum().item() / len(some)
        sae.threshold.fill_(0)
        acts = sae.encode(some).flatten()
        cut = torch.topk(acts, k * len(some)).values[-1].item()
    path = os.path.join(folder, "sae_weights.safetensors")
    state = load_file(path)
    state["threshold"].fill_(cut)
    save_file(state, path)
    return before


def main():
    p = argparse.ArgumentParser()
    p.add_argument("harvest"), p.add_argument("out")
    p.add_argument("--layer", type=int, required=True), p.add_argument("--features", type=int, default=6144), p.add_argument("--k", type=int, default=32)
    p.add_argument("--seconds", type=float, default=60), p.add_argument("--tokens", type=int), p.add_argument("--batch", type=int, default=4096), p.add_argument("--rate", type=float, default=3e-4)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    x, info = rows(o.harvest, o.layer)
    tokens = o.tokens or int(speed(o, x, info) * o.seconds)
    torch.manual_seed(1)
    t = trainer(o, x, info, tokens)
    began = time.monotonic()
    t.fit()
    seconds = time.monotonic() - began
    sae = t.sae
    sae.cfg.metadata.model_name = info["model"]["name"]
    sae.cfg.metadata.hook_name = f"blocks.{o.layer}.hook_resid_post"
    sae.cfg.metadata.espalier_model_sha256 = info["model"]["sha256"]
    sae.save_inference_model(o.out)
    before = settle_threshold(o.out, x, o.k)
    print(json.dumps({"tokens": t.n_training_samples, "seconds": round(seconds, 1), "steps": t.n_training_steps, "rows": len(x), "threads": o.threads, "l0_before": round(before, 1)}))


if __name__ == "__main__":
    main()
