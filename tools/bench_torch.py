#!/usr/bin/env python3
"""Dense dictionary training and activations by PyTorch, for `espalier bench --against torch`, which runs this and asks for one thing at
a time so that the two sides take turns on the machine.

A line of JSON in, a line of JSON out. First {"model": FILE.gguf or a transformers folder or null, "threads", "x": FILE (f32 [batch, d]), "d",
"features", "k", "batch", "enc": FILE (f32 [features, d]), "sequences": [[ids]...], "layer"}. Answer: versions and what was loaded. Then for each line
"step" the seconds of a TopK training step (forward, backward, Adam) on that batch, and the loss before it; for each line "harvest" the seconds
of the model's hidden states after `layer` in bfloat16 of all sequences, and for "check" the first sequence's norm after it. A line {"error"} ends it.

Needs torch, and transformers and gguf where a model is named. Nothing is downloaded.
"""
import json
import os
import sys
import time

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error",
                  HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def numbers(torch, path, *shape):
    import numpy
    return torch.from_numpy(numpy.fromfile(path, dtype="<f4").reshape(shape))


class Dictionary:
    """A TopK autoencoder (Gao et al. 2024) as it is usually written: everything dense but the choice."""

    def __init__(self, torch, asked):
        d, n = asked["d"], asked["features"]
        self.torch, self.k = torch, asked["k"]
        self.x = numbers(torch, asked["x"], asked["batch"], d)
        enc = numbers(torch, asked["enc"], n, d)
        self.dec = enc.clone().requires_grad_()
        self.enc = enc.T.contiguous().requires_grad_()
        self.b_enc = torch.zeros(n, requires_grad=True)
        self.b_dec = torch.zeros(d, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.enc, self.dec, self.b_enc, self.b_dec], lr=asked["rate"])

    def step(self):
        torch = self.torch
        began = time.perf_counter()
        self.optimiser.zero_grad(set_to_none=True)
        pre = (self.x - self.b_dec) @ self.enc + self.b_enc
        top = pre.topk(self.k, dim=-1, sorted=False)
        f = torch.zeros_like(pre).scatter(-1, top.indices, torch.relu(top.values))
        loss = (f @ self.dec + self.b_dec - self.x).pow(2).sum(-1).mean()
        loss.backward()
        self.optimiser.step()
        with torch.no_grad():
            self.dec /= self.dec.norm(dim=-1, keepdim=True)
        return {"seconds": time.perf_counter() - began, "loss": loss.item()}


class Harvest:
    def __init__(self, torch, asked):
        import transformers
        from bench_peft import load
        model, self.weights = load(asked["model"], torch, transformers)
        inner = model.model
        inner.layers = inner.layers[: asked["layer"] + 1]
        inner.norm = torch.nn.Identity()
        self.torch, self.model, self.version = torch, inner.to(torch.bfloat16).eval(), transformers.__version__
        self.ids = torch.tensor(asked["sequences"])

    def states(self):
        with self.torch.no_grad():
            # Eight sequences at a time, as the other side has 2,048 tokens.
            return [self.model(input_ids=part, use_cache=False).last_hidden_state.to(self.torch.float16) for part in self.ids.split(8)]

    def step(self):
        began = time.perf_counter()
        self.states()
        return {"seconds": time.perf_counter() - began}

    def check(self):
        return {"norms": self.states()[0][0].float().norm(dim=-1).tolist()}


def serve(lines, answer):
    try:
        import torch
    except ImportError as why:
        raise SystemExit(f"{why}; this Python needs: pip install torch transformers gguf") from why
    asked = json.loads(next(lines))
    torch.set_num_threads(asked["threads"])
    dictionary = Dictionary(torch, asked)
    harvest = Harvest(torch, asked) if asked["model"] else None
    answer({"torch": torch.__version__, "transformers": harvest.version if harvest else None, "python": sys.version.split()[0], "threads": torch.get_num_threads(),
            "weights": harvest.weights if harvest else None})
    for line in lines:
        what = json.loads(line)
        if what == "step":
            answer(dictionary.step())
        elif what == "harvest":
            answer(harvest.step())
        elif what == "check":
            answer(harvest.check())
        else:
            raise ValueError(f"not a request: {line[:80]!r}")


def main():
    from bench_peft import run
    return run(serve)


if __name__ == "__main__":
    sys.exit(main())
