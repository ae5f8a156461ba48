#!/usr/bin/env python3
"""Makes sae_training.json: loss and gradients of one batch for every recipe of `espalier train`, by SAELens' own training classes.

    pip install sae-lens
    python3 make_sae_training.py > sae_training.json

The gated recipe is written out here instead: SAELens lets its auxiliary loss's gradient into the decoder, where the paper (Rajamanoharan et
al. 2024a, appendix with the pseudo-code) has a frozen copy. Number i of an array starts as scale * sin(0.7 i + phase) + shift, see START; dec
rows are not unit vectors here, so that nothing hides behind their being so."""
import json
import math
import sys

import torch
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

D, F, B, K = 6, 20, 10, 4
SPARSITY, BANDWIDTH, PREFIXES, AUX_WEIGHT = 0.3, 0.4, [4, 9, 20], 0.25
DEAD = list(range(11, 20))  # more than D // 2, which is SAELens' k of the auxiliary loss
START = {"x": (1.5, 0.3, 0.2), "enc": (0.6, 1.1, 0.0), "dec": (0.5, 2.3, 0.0), "b_enc": (0.2, 0.9, 0.4), "b_dec": (0.2, 0.5, 0.1),
         "theta": (0.1, 0.0, 0.5), "r_mag": (0.3, 1.7, 0.0), "b_mag": (0.2, 0.4, 0.1)}


def start(name, *shape):
    scale, phase, shift = START[name]
    n = math.prod(shape)
    return torch.tensor([scale * math.sin(0.7 * i + phase + 0.003 * i * i) + shift for i in range(n)], dtype=torch.float64).reshape(shape)


def rounded(t):
    return [float(f"{v:.9g}") for v in t.detach().reshape(-1).tolist()]


def set_numbers(sae, names):
    with torch.no_grad():
        sae.W_enc.copy_(start("enc", F, D).T)
        sae.W_dec.copy_(start("dec", F, D))
        sae.b_dec.copy_(start("b_dec", D))
        for ours, theirs in names.items():
            theirs.copy_(start(ours, F))


def by_saelens(sae, coefficients, dead):
    sae.double()
    names = {"b_enc": sae.b_enc}
    if isinstance(sae, JumpReLUTrainingSAE):
        sae.threshold.data = sae.threshold.data.double()
        names["theta"] = sae.threshold
    set_numbers(sae, names)
    mask = torch.zeros(F, dtype=torch.bool)
    mask[dead] = True
    out = sae.training_forward_pass(TrainStepInput(sae_in=start("x", B, D), coefficients=coefficients, dead_neuron_mask=mask if dead else None,
                                                   n_training_steps=0, is_logging_step=False))
    out.loss.backward()
    grads = {"enc": sae.W_enc.grad.T, "dec": sae.W_dec.grad, "b_dec": sae.b_dec.grad, **{n: p.grad for n, p in names.items()}}
    return {"loss": out.loss.item(), "active": int((out.feature_acts > 0).sum()), **{n: rounded(g) for n, g in grads.items()}}


def gated():
    p = {n: start(n, F, D).requires_grad_() for n in ("enc", "dec")}
    p |= {n: start(n, F).requires_grad_() for n in ("b_enc", "r_mag", "b_mag")}
    p["b_dec"] = start("b_dec", D).requires_grad_()
    x = start("x", B, D)
    projected = (x - p["b_dec"]) @ p["enc"].T
    gate = projected + p["b_enc"]
    f = (gate > 0) * torch.relu(projected * p["r_mag"].exp() + p["b_mag"])
    via_gate = torch.relu(gate)
    loss = ((x - f @ p["dec"] - p["b_dec"]) ** 2).sum(-1).mean() + SPARSITY * via_gate.sum(-1).mean()
    loss = loss + ((x - via_gate @ p["dec"].detach() - p["b_dec"].detach()) ** 2).sum(-1).mean()
    loss.backward()
    return {"loss": loss.item(), "active": int((f > 0).sum()), **{n: rounded(v.grad) for n, v in p.items()}}


def main():
    common = {"d_in": D, "d_sae": F, "dtype": "float64", "device": "cpu", "apply_b_dec_to_input": True}
    top = {"k": K, "rescale_acts_by_decoder_norm": False, "aux_loss_coefficient": AUX_WEIGHT, **common}
    recipes = {
        "batchtopk": by_saelens(BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**top)), {}, DEAD),
        "topk": by_saelens(TopKTrainingSAE(TopKTrainingSAEConfig(**top)), {}, DEAD),
        "matryoshka": by_saelens(MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(matryoshka_widths=PREFIXES, **top)), {}, DEAD),
        "jumprelu": by_saelens(JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(jumprelu_bandwidth=BANDWIDTH, **common)), {"l0": SPARSITY}, []),
        "gated": gated(),
        "standard": by_saelens(StandardTrainingSAE(StandardTrainingSAEConfig(**common)), {"l1": SPARSITY}, []),
    }
    json.dump({"d": D, "F": F, "B": B, "k": K, "sparsity": SPARSITY, "bandwidth": BANDWIDTH, "prefixes": PREFIXES, "aux_k": D // 2, "aux_weight": AUX_WEIGHT,
               "dead": DEAD, "start": START, "recipes": recipes}, sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main()
