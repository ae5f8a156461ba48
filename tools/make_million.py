#!/usr/bin/env python3
"""Generates a dictionary of 2^20 random features for a model of width 640 (Gemma 3 270M), with labels: what `tools/million.py` measures. Numpy only.

usage: make_million.py OUT [--features F] [--width D] [--layer L] [--labels N] [--model-sha256 HEX]

OUT becomes a SAELens folder: jumprelu, f16 (2.7 GB), inputs scaled to a norm of sqrt(d), unit rows, a threshold at 4 standard deviations: some 33 features a token.
Rows of the encoder are the decoder's. labels.jsonl names every 50th feature or so.
"""
import argparse
import json
import os
import random

import numpy as np

WORDS = "animals weather numbers dates apologies greetings code brackets names cities colours music verbs questions refusals quotes lists tense medicine law".split()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out"), p.add_argument("--features", type=int, default=1 << 20), p.add_argument("--width", type=int, default=640)
    p.add_argument("--layer", type=int, default=9), p.add_argument("--labels", type=int, default=20000), p.add_argument("--model-sha256", default="")
    o = p.parse_args()
    F, d = o.features, o.width
    os.makedirs(o.out, exist_ok=True)
    metadata = {"model_name": "gemma-3-270m", "hook_name": f"blocks.{o.layer}.hook_resid_post", "sae_lens_version": "6.54.12"}
    if o.model_sha256:
        metadata["espalier_model_sha256"] = o.model_sha256
    with open(os.path.join(o.out, "cfg.json"), "w") as f:
        json.dump({"d_in": d, "d_sae": F, "dtype": "float16", "device": "cpu", "apply_b_dec_to_input": False, "normalize_activations": "constant_norm_rescale",
                   "reshape_activations": "none", "architecture": "jumprelu", "metadata": metadata}, f)
    sizes = {"W_dec": ([F, d], "F16", 2 * F * d), "W_enc": ([d, F], "F16", 2 * F * d), "b_dec": ([d], "F32", 4 * d), "b_enc": ([F], "F32", 4 * F),
             "threshold": ([F], "F32", 4 * F)}
    header, at = {}, 0
    for name, (shape, kind, size) in sizes.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    path = os.path.join(o.out, "sae_weights.safetensors")
    with open(path, "wb") as f:
        f.write(len(head).to_bytes(8, "little") + head)
        f.truncate(8 + len(head) + at)
    start = 8 + len(head)
    dec = np.memmap(path, "<f2", "r+", start, (F, d))
    enc = np.memmap(path, "<f2", "r+", start + 2 * F * d, (d, F))
    rng = np.random.default_rng(1)
    for i in range(0, F, 1 << 15):
        w = rng.standard_normal((min(1 << 15, F - i), d), dtype=np.float32)
        w /= np.linalg.norm(w, axis=1, keepdims=True)
        dec[i : i + len(w)] = w
        enc[:, i : i + len(w)] = w.T
    np.memmap(path, "<f4", "r+", start + header["threshold"]["data_offsets"][0], (F,))[:] = 4
    del dec, enc
    pick = random.Random(1)
    with open(os.path.join(o.out, "labels.jsonl"), "w") as f:
        for i in sorted(pick.sample(range(F), min(o.labels, F))):
            f.write(json.dumps({"feature": i, "text": " ".join(pick.sample(WORDS, 3)), "tags": [pick.choice(WORDS)], "author": "made"}) + "\n")


if __name__ == "__main__":
    main()
