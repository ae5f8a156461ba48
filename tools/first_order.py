#!/usr/bin/env python3
"""How far does a direction of change carry a preference, and what does it cost elsewhere, before a single step is taken?

  tools/first_order.py gradients MODEL.gguf pairs.jsonl OUT.npz [FIRST]          per-pair gradients of m(+) - m(-)
  tools/first_order.py neutral   MODEL.gguf documents.jsonl OUT.npz [FIRST]      score gradients of neutral text, targets drawn from the model
  tools/first_order.py table     SAE_WEIGHTS.safetensors NEUTRAL.npz PAIRS.npz [PAIRS.npz ...]

m: mean log-probability a token of a reply. Gradients are taken by the matrices that write the residual (attention output, MLP down) in layers FIRST (14) and up (behind the norm after
them where the family has one, as the adapter), behind a
fixed random projection A of their inputs to 32 numbers: dW = G A. For a direction D the margin grows as <g, D> (g: mean gradient of held-out pairs) and the KL on neutral
text as 1/2 E <s, D>^2 (s: a score gradient divided by the root of its tokens), so <g, D> / sqrt(1/2 E <s, D>^2) is margin / sqrt(KL) of a small step. The metric is
estimated on one half of the neutral documents and read on the other.

    pip install torch transformers gguf numpy safetensors
"""
import json
import os
import random
import sys

import numpy as np

RANK, PAIRS, HELD, DOCUMENTS, TOKENS, PROMPT, REPLY, DRAWS = 32, 100, 40, 150, 48, 40, 32, 2


class Model:
    def __init__(self, path, first):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        torch.manual_seed(0)
        self.torch = torch
        folder, name = os.path.split(os.path.abspath(path))
        self.tok = AutoTokenizer.from_pretrained(folder, gguf_file=name)
        self.net = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
        for p in self.net.parameters():
            p.requires_grad_(False)
        self.kept, self.sites, gen = [], [], torch.Generator().manual_seed(5)
        for i, layer in enumerate(self.net.model.layers):
            if i == first - 1:
                layer.register_forward_hook(lambda m, x, y: y.detach().requires_grad_(True) if torch.is_tensor(y) else (y[0].detach().requires_grad_(True),) + y[1:])
            if i < first:
                continue
            behind = hasattr(layer, "post_feedforward_layernorm")
            for part, norm in ((layer.self_attn.o_proj, "post_attention_layernorm"), (layer.mlp.down_proj, "post_feedforward_layernorm")):
                a = (torch.randn(RANK, part.in_features, generator=gen) / part.in_features ** 0.5)
                self.sites.append(a)
                self.kept.append([None, None])
                part.register_forward_hook(self.keep(len(self.sites) - 1, 0))
                (getattr(layer, norm) if behind else part).register_forward_hook(self.keep(len(self.sites) - 1, 1))

    def keep(self, at, which):
        def hook(module, x, y):
            if which:
                if not y.requires_grad:
                    y.requires_grad_(True)
                y.retain_grad()
            self.kept[at][which] = y if which else x[0].detach()
        return hook

    def prompt(self, turns):
        if self.tok.chat_template and "gemma" in type(self.net).__name__.lower():
            return self.tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False), "<end_of_turn>"
        if turns[0]["role"] != "system":
            turns = [{"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}] + turns
        ask = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in turns) + "<|im_start|>assistant\n"
        return self.tok.encode(ask, add_special_tokens=False), "<|im_end|>"

    def hidden(self, sequences):
        torch, n = self.torch, max(map(len, sequences))
        ids, mask = torch.zeros(len(sequences), n, dtype=torch.long), torch.zeros(len(sequences), n, dtype=torch.long)
        for i, s in enumerate(sequences):
            ids[i, :len(s)], mask[i, :len(s)] = torch.tensor(s), 1
        return self.net.model(input_ids=ids, attention_mask=mask).last_hidden_state

    def logprobs(self, h):
        return self.torch.log_softmax(self.net.lm_head(h).float(), -1)

    def gradient(self):
        """[site, d, RANK] of everything that backward has left since the last call."""
        out = []
        for i, a in enumerate(self.sites):
            x, y = self.kept[i]
            out.append(self.torch.einsum("btd,btr->dr", y.grad.float(), (x @ a.T).float()).half().numpy())
            y.grad = None
        return np.stack(out)


def gradients(path, pairs, out, first=14):
    m, rows = Model(path, first), [json.loads(line) for line in open(pairs, encoding="utf-8")]
    random.Random(3).shuffle(rows)
    got = []
    for n, row in enumerate(rows[:PAIRS]):
        ask, end = m.prompt(row["messages"])
        ask = ask[-PROMPT:]
        reply = [m.tok.encode(row[k] + end, add_special_tokens=False)[:REPLY] for k in ("preferred", "rejected")]
        h = m.hidden([ask + r for r in reply])
        mean = [m.logprobs(h[i, len(ask) - 1:len(ask) + len(r) - 1]).gather(-1, m.torch.tensor(r)[:, None]).mean() for i, r in enumerate(reply)]
        (mean[0] - mean[1]).backward()
        got.append(m.gradient())
        print(f"\r{n + 1} pairs", end="", file=sys.stderr)
    np.savez(out, g=np.stack(got))


def neutral(path, documents, out, first=14):
    m, rows = Model(path, first), [json.loads(line)["text"] for line in open(documents, encoding="utf-8")]
    random.Random(4).shuffle(rows)
    got = []
    for text in rows:
        ids = m.tok.encode(text, add_special_tokens=False)
        at = random.Random(len(text)).randrange(max(1, len(ids) - TOKENS))
        ids = ids[at:at + TOKENS]
        if len(ids) < TOKENS:
            continue
        lp = m.logprobs(m.hidden([ids])[0, :-1])
        for _ in range(DRAWS):
            y = m.torch.multinomial(lp.detach().exp(), 1)
            lp.gather(-1, y).sum().backward(retain_graph=True)
            got.append((m.gradient().astype(np.float32) / (TOKENS - 1) ** 0.5).astype(np.float16))
        print(f"\r{len(got) // DRAWS} documents", end="", file=sys.stderr)
        if len(got) >= DRAWS * DOCUMENTS:
            break
    np.savez(out, s=np.stack(got))


def table(sae, scores, files):
    import torch
    from safetensors.numpy import load_file
    D = torch.tensor(load_file(sae)["W_dec"].astype(np.float32))
    D /= D.norm(dim=1, keepdim=True)
    s = torch.tensor(np.load(scores)["s"].astype(np.float32))
    est, test = s[:len(s) // 2], s[len(s) // 2:]
    d = s.shape[2]
    out, inn = torch.einsum("nedr,nefr->edf", est, est) / len(est), torch.einsum("nedr,neds->ers", est, est) / len(est)
    size = out.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    low = torch.linalg.cholesky(out / size + 0.1 * torch.eye(d))
    right = torch.linalg.cholesky(inn / inn.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 0.1 * torch.eye(RANK))

    def white(x, outputs=True):
        x = torch.cholesky_solve(x, low) if outputs else x
        return torch.cholesky_solve(x.transpose(1, 2), right).transpose(1, 2) / size

    def within(x, k):
        q, _ = torch.linalg.qr(D[k].T)
        return torch.einsum("df,efr->edr", q @ q.T, x)

    def white_within(x, k):
        """The natural gradient of what moves along the rows k alone: outputs whitened among them."""
        q, _ = torch.linalg.qr(D[k].T)
        f = torch.einsum("dk,edf,fl->ekl", q, out / size, q)
        f = torch.linalg.cholesky(f + 0.1 * torch.eye(f.shape[1]) * f.diagonal(dim1=1, dim2=2).mean(1)[:, None, None])
        x = torch.einsum("dk,edr->ekr", q, white(x, False))
        return torch.einsum("dk,ekr->edr", q, torch.cholesky_solve(x, f))

    def by_gradient(x, n):
        return torch.einsum("kd,edr->ker", D, x).square().sum((1, 2)).topk(n).indices

    for path in files:
        g = torch.tensor(np.load(path)["g"].astype(np.float32))
        held, pool, rows, rng = g[-HELD:].mean(0), g[:-HELD], {}, np.random.default_rng(1)

        def add(name, x):
            rows.setdefault(name, []).append(((held * x).sum() / (0.5 * (test.flatten(1) @ x.flatten()).square().mean()).sqrt()).item())
        for _ in range(3):
            order = rng.permutation(len(pool))
            for n, bad in ((1, 0), (4, 0), (8, 0), (8, 3), (len(pool) // 2, 0)):
                sign = torch.ones(n)
                sign[:bad] = -1
                own, other = (pool[order[:n]] * sign[:, None, None, None]).mean(0), pool[order[n:]].mean(0)
                tag = f"{n} pairs" + (f", {bad} swapped" if bad else "")
                mix = own / own.norm() + 2 * other / other.norm()
                add(tag + ": sign of the gradient (Adam's first step)", own.sign())
                add(tag + ": gradient", own)
                add(tag + ": inputs whitened", white(own, False))
                add(tag + ": inputs and outputs whitened", white(own))
                for k in (16, 64, 256):
                    add(tag + f": inputs whitened, within {k} features by gradient", white(within(own, by_gradient(own, k)), False))
                    add(tag + f": inputs whitened, within {k} random features", white(within(own, torch.tensor(rng.choice(len(D), k, replace=False))), False))
                diagonal = out.diagonal(dim1=1, dim2=2)
                add(tag + ": inputs whitened, outputs by their own size", white(own, False) / (diagonal + 0.1 * diagonal.mean(1, keepdim=True))[:, :, None] * size)
                add(tag + ": inputs whitened, outputs within 256 features by gradient", white_within(own, by_gradient(own, 256)))
                add(tag + ": inputs whitened, 256 features and a direction from the other pairs", white(within(mix, by_gradient(other, 256)), False))
                add(tag + ": all whitened, and a direction from the other pairs", white(mix))
        print(f"\n{path}\n")
        for name, v in rows.items():
            print(f"| {name} | {np.mean(v):.2f} ({min(v):.2f} to {max(v):.2f}) |")


def main():
    kinds = {"gradients": gradients, "neutral": neutral}
    if len(sys.argv) in (5, 6) and sys.argv[1] in kinds:
        kinds[sys.argv[1]](*sys.argv[2:5], *map(int, sys.argv[5:]))
    elif len(sys.argv) >= 5 and sys.argv[1] == "table":
        table(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
