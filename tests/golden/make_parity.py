#!/usr/bin/env python3
"""Real weights beside transformers and llama.cpp: prints a table, and stores what tests/engine/test_parity.c compares with.

    pip install gguf transformers torch llama-cpp-python
    make_parity.py DATA ESPALIER NAME=FILE.gguf ...        NAME: smollm2 or gemma3

Of 50 texts of the public data (free ones: see FREE; their first 240 characters) each token's log-probability
  - by transformers in f32, on the file's weights dequantised by gguf: the truth;
  - by `espalier score` (exact) and, of every fifth text, `espalier score --decoded` (as a chat reads);
  - by llama.cpp, the whole text in one batch, and, of every fifth text, token by token.
Difference: the mean absolute one a token from the truth. KL: of the next token's distribution, KL(truth || other), mean a token; espalier's is
from its own exact distribution, whose log-probabilities the table shows to be the truth's.

parity/NAME.bin: for each text its number of tokens (i32), ids (i32) and log-probabilities by transformers (f32, the first NaN), little-endian.
parity/parity.json: NAME -> llama.cpp's mean difference and KL, and their sums over each text, of batches.
"""
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np

FREE = {"CC0-1.0", "public-domain", "Apache-2.0", "MIT", "PSF-2.0", "BSD-3-Clause"}
COUNT, CHARACTERS, PER_SOURCE, EVERY = 50, 240, 3, 5
HERE = os.path.dirname(os.path.abspath(__file__))


def texts(data):
    seen, out = {}, []
    with open(os.path.join(data, "general/general.dev.jsonl"), encoding="utf-8") as f:
        for line in f:
            d = json.loads(line)
            if d["lic"] in FREE and len(d["text"]) >= CHARACTERS and seen.get(d["src"], 0) < PER_SOURCE:
                seen[d["src"]] = seen.get(d["src"], 0) + 1
                out.append(d["text"][:CHARACTERS])
    return [out[i * len(out) // COUNT] for i in range(COUNT)]


def espalier(program, model, items):
    """ids, exact, decoded, kl of each text; the last two None but of every fifth."""
    out = []
    with tempfile.NamedTemporaryFile(suffix=".txt") as f:
        for i, s in enumerate(items):
            with open(f.name, "w", encoding="utf-8") as g:
                g.write(s)
            more = ["--decoded"] if i % EVERY == 0 else []
            r = json.loads(subprocess.run([program, "--model", model, "--threads", "1", "--quiet", "score", f.name, *more, "--json"], check=True, capture_output=True).stdout)
            out.append((r["tokens"], np.array(r["logprobs"][1:]), *(np.array(r[k][1:]) if more else None for k in ("decoded", "kls"))))
    return out


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)


class Truth:
    def __init__(self, path):
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path), dtype=torch.float32).eval()

    def __call__(self, ids):
        with self.torch.no_grad():
            return log_softmax(self.model(self.torch.tensor([ids])).logits[0].numpy())


class Llama:
    def __init__(self, path, single):
        import llama_cpp

        self.single = single
        self.llm = llama_cpp.Llama(path, n_ctx=512, n_batch=512, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False)

    def __call__(self, ids):
        self.llm.reset()
        for part in [[i] for i in ids] if self.single else [ids]:
            self.llm.eval(part)
        return log_softmax(np.array(self.llm.scores[:len(ids)]))


def measure(other, truth, ids):
    """Over the predicted tokens: the sum of |difference|, the sum of KL, the largest difference."""
    at = np.arange(len(ids) - 1)
    diff = np.abs(other[at, ids[1:]] - truth[at, ids[1:]])
    kl = (np.exp(truth[:-1]) * (truth[:-1] - other[:-1])).sum(dtype=np.float64)
    return float(diff.sum()), float(kl), float(diff.max())


def main():
    data, program = sys.argv[1:3]
    items = texts(data)
    where = os.path.join(HERE, "parity", "parity.json")
    stored = json.load(open(where)) if os.path.exists(where) else {}
    for arg in sys.argv[3:]:
        name, path = arg.split("=", 1)
        ours, truth, peers = espalier(program, path, items), Truth(path), {"llama.cpp, batch": Llama(path, False), "llama.cpp, token by token": Llama(path, True)}
        table = {k: [0, 0.0, 0.0, 0.0] for k in ["espalier, exact", "espalier, decoded", *peers]}  # tokens, sums of |difference| and KL, largest

        def add(key, n, difference, kl, largest):
            row = table[key]
            row[:] = [row[0] + n, row[1] + difference, row[2] + kl, max(row[3], largest)]

        blob, by_text = b"", []
        for i, (ids, exact, decoded, kl) in enumerate(ours):
            p, n = truth(ids), len(ids) - 1
            want = p[np.arange(n), ids[1:]]
            blob += struct.pack("<i%di%df" % (n + 1, n + 1), n + 1, *ids, float("nan"), *want)
            add("espalier, exact", n, np.abs(exact - want).sum(), 0, np.abs(exact - want).max())
            if decoded is not None:
                add("espalier, decoded", n, np.abs(decoded - want).sum(), kl.sum(), np.abs(decoded - want).max())
            for key, peer in peers.items():
                if peer.single and i % EVERY:
                    continue
                one = measure(peer(ids), p, ids)
                add(key, n, *one)
                if not peer.single:
                    by_text.append(one)
        with open(os.path.join(HERE, "parity", name + ".bin"), "wb") as f:
            f.write(blob)
        print(f"{name}: {len(items)} texts", flush=True)
        for key, (n, difference, kl, largest) in table.items():
            print(f"  {key:26} {n:5} tokens  difference {difference / n:.6f} (largest {largest:.5f})  KL {kl / n:.7f}", flush=True)
        n, difference, kl, _ = table["llama.cpp, batch"]
        stored[name] = {"tokens": n, "difference": round(difference / n, 6), "kl": round(kl / n, 8),
                        "differences": [round(d, 5) for d, _, _ in by_text], "kls": [round(k, 6) for _, k, _ in by_text]}
        with open(where, "w") as f:
            json.dump(stored, f, sort_keys=True)
            f.write("\n")


if __name__ == "__main__":
    main()
