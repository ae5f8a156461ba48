#!/usr/bin/env python3
"""Cohen's kappa with the standard error of Fleiss, Cohen and Everitt (1969), from the tables themselves, in numpy: make_kappa.py > kappa.json

The formulas are those of statsmodels.stats.inter_rater.cohens_kappa (var_kappa without weights), written out.
"""
import json

import numpy as np

rng = np.random.default_rng(7)
cases = []
for categories, n, agree in [(2, 50, 0.7), (2, 200, 0.95), (3, 40, 0.5), (5, 300, 0.3), (12, 90, 0.8)]:
    a = rng.choice(categories, n, p=rng.dirichlet(np.ones(categories)))
    b = np.where(rng.random(n) < agree, a, rng.integers(0, categories, n))
    p = np.zeros((categories, categories))
    np.add.at(p, (a, b), 1 / n)
    row, column = p.sum(1), p.sum(0)
    observed, expected = np.trace(p), row @ column
    kappa = (observed - expected) / (1 - expected)
    A = (np.diag(p) * (1 - (row + column) * (1 - kappa)) ** 2).sum()
    other = (column[:, None] + row[None, :]) ** 2  # of cell (i, j): p_.i + p_j.
    B = (1 - kappa) ** 2 * ((p - np.diag(np.diag(p))) * other).sum()
    C = (kappa - expected * (1 - kappa)) ** 2
    cases.append({"a": a.tolist(), "b": b.tolist(), "observed": observed, "expected": expected, "kappa": kappa,
                  "error": float(np.sqrt((A + B - C) / n) / (1 - expected))})
print(json.dumps(cases))
