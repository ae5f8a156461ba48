#!/usr/bin/env python3
"""Makes quality.json: a logistic probe and absorption scores on planted data, by numpy in double precision (Newton with the full Hessian; no code of ours
and no scikit-learn).

    pip install numpy
    python3 make_quality.py > quality.json

Absorption is SAEBench's (sae_bench/evals/absorption), on x less the decoder's bias. Numbers are rounded before anything is computed from them."""
import json

import numpy as np

rng = np.random.default_rng(7)
N, D, F = 90, 6, 8


def rounded(a):
    return np.round(np.asarray(a, dtype=np.float64), 4)


def fit(x, y):
    """Minimum of mean c log(1 + exp(-s z)) + |w|^2 / 2n on standardised columns; weights for x as it is."""
    n, mu, sd = len(y), x.mean(0), x.std(0)
    z = np.hstack([(x - mu) / sd, np.ones((n, 1))])
    c = np.where(y == 1, n / (2 * (y == 1).sum()), n / (2 * (y == 0).sum()))
    s = 2.0 * y - 1
    ridge = np.diag([1.0 / n] * x.shape[1] + [0])
    w = np.zeros(z.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(s * (z @ w)))
        g = -(z * (c * s * p)[:, None]).mean(0) + ridge @ w
        h = (z * (c * p * (1 - p))[:, None]).T @ z / n + ridge
        w -= np.linalg.solve(h, g)
    assert np.abs(g).max() < 1e-12
    return w[:-1] / sd, w[-1] - (w[:-1] * mu / sd).sum()


def absorption(x, acts, dec, b_dec, p, main):
    """-> fraction, full, top, as in SAEBench's calculator."""
    p = p / np.linalg.norm(p)
    cos = dec @ p / np.linalg.norm(dec, axis=1)
    proj, whole = acts * (dec @ p), (x - b_dec) @ p
    if whole <= 0:
        return 0.0, False
    of_main = proj[main].sum()
    mask = np.ones(len(acts), bool)
    mask[main] = False
    mask &= (cos >= 0.1) & (proj > 0)
    others = np.sort(proj[mask])[::-1][:3].sum()
    if of_main >= whole or others / whole < 0.4:
        fraction = 0.0
    elif of_main <= 0:
        fraction = 1.0
    else:
        part = min(others, whole - of_main)
        fraction = part / (part + of_main)
    top = int(np.argmax(proj))
    full = bool((acts[main] == 0).all() and proj[top] > 0 and cos[top] >= 0.025 and proj[top] / whole >= 0.4)
    return float(fraction), full


y = (rng.random(N) < 0.35).astype(int)
x = rounded(rng.normal(size=(N, D)) * [1, 3, 0.2, 1, 5, 1] + [0, 2, -1, 0, 9, 0] + 0.9 * y[:, None] * [1, 0, 0.2, 0, -3, 0])
w, b = fit(x, y)
dec = rng.normal(size=(F, D))
dec = rounded(dec / np.linalg.norm(dec, axis=1, keepdims=True) * rng.uniform(0.5, 1.5, size=(F, 1)))
b_dec, p = rounded(rng.normal(size=D) * 0.3), rounded(rng.normal(size=D))
p = rounded(p / np.linalg.norm(p))
words, seen = [], {}
while len(words) < 24:
    acts = rounded(np.where(rng.random(F) < 0.5, rng.gamma(1.5, 1.0, size=F), 0))
    main = sorted(int(v) for v in rng.choice(F, size=rng.integers(1, 3), replace=False))
    if rng.random() < 0.5:
        acts[main] = 0
    row = rounded(acts @ dec + b_dec + 0.4 * rng.normal(size=D))
    fraction, full = absorption(row, acts, dec, b_dec, p, main)
    kind = (0 if fraction == 0 else 2 if fraction == 1 else 1, full)
    if seen.get(kind, 0) >= 6:  # so that every branch is there
        continue
    seen[kind] = seen.get(kind, 0) + 1
    words.append({"x": row.tolist(), "acts": acts.tolist(), "main": main, "fraction": fraction, "full": full})
assert {(0, False), (1, False), (2, False), (2, True)} <= set(seen)
print(json.dumps({"probe": {"x": x.tolist(), "y": y.tolist(), "w": w.tolist(), "b": float(b)},
                  "absorption": {"decoder": dec.tolist(), "b_dec": b_dec.tolist(), "p": p.tolist(), "words": words}}))
