"""looks.json: correlation and cosine of features over tokens, and a histogram of logits, as numpy has them.
Usage: make_looks.py OUT.json"""
import json
import sys

import numpy as np

rng = np.random.default_rng(7)
T, F, TOP = 240, 24, 5
acts = np.where(rng.random((T, F)) < 0.12, rng.gamma(2, 1.5, (T, F)), 0)
acts[:, 5] = np.where(acts[:, 4] > 0, acts[:, 4] * rng.uniform(0.5, 1.5, T), 0)  # goes with 4
acts[:, 9] = np.where(rng.random(T) < 0.5, acts[:, 4] + 0.3, 0)                   # now and then
acts[:, 11] = 0                                                                   # never
acts = acts.astype(np.float32).astype(np.float64)
with np.errstate(invalid="ignore", divide="ignore"):
    pearson = np.corrcoef(acts.T)
    norm = np.sqrt((acts**2).sum(0))
    cosine = acts.T @ acts / np.outer(norm, norm)
together = (acts > 0).T.astype(int) @ (acts > 0).astype(int)
top = []
for j in range(F):
    others = [i for i in range(F) if i != j and together[i, j] > 1 and np.isfinite(pearson[i, j])]
    others.sort(key=lambda i: -pearson[i, j])
    top.append([[i, pearson[i, j], cosine[i, j]] for i in others[:TOP]])
rows = [[[int(j), float(acts[t, j])] for j in np.nonzero(acts[t])[0]] for t in range(T)]
logits = rng.normal(0, 1.3, 900).astype(np.float32)
count, edges = np.histogram(logits, 50)
json.dump({"features": F, "top": top, "tokens": rows, "logits": [float(x) for x in logits], "logit_range": [float(edges[0]), float(edges[-1])],
           "logit_histogram": count.tolist()}, open(sys.argv[1], "w"))
