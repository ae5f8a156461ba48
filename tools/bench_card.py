#!/usr/bin/env python3
"""PyTorch, transformers and PEFT on a card, for `espalier bench --device cuda --python PYTHON`, which runs this and asks for one thing at a time so
that the two sides take turns on the card.

A line of JSON in, a line of JSON out. First {"device": "cuda:0" or "cpu", "threads"}: versions. Then
  {"open": "dictionary", "x": FILE (f32 [batch, d]), "enc": FILE (f32 [features, d]), "d", "features", "k", "batch", "rate", "looked_at"}
      a BatchTopK autoencoder with dense operations, in TF32;
  {"open": "model", "layers", "width", "heads", "kv", "head", "ff", "vocab", "context", "rope_base", "eps"}: a llama of random numbers in bfloat16;
  {"open": "peft", "rank", "sequences", "length"}: LoRA on all linear layers of that model, the last quarter of each sequence learned from;
  "step": of the dictionary or of PEFT, whichever was opened last, {"seconds"} and the dictionary's {"fvu"} before it;
  {"prompt": N} and {"decode": N}: {"seconds"} of N tokens; "close": what was opened is freed.
{"skipped": why} where the card's memory does not do. A line {"error"} ends it. Nothing is downloaded.
"""
import json
import os
import sys
import time

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error",
                  HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


class Timed:
    """Seconds of a block, the card's work included."""

    def __init__(self, torch, device):
        self.torch, self.device = torch, device

    def wait(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def __enter__(self):
        self.wait()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *_):
        self.wait()
        self.seconds = time.perf_counter() - self.began


class Dictionary:
    """BatchTopK (Bussmann et al. 2024) as SAELens trains it: products, choice and gradients on dense matrices of tokens times features."""

    def __init__(self, torch, device, asked):
        import numpy

        def numbers(path, *shape):
            return torch.from_numpy(numpy.fromfile(path, dtype="<f4").reshape(shape)).to(device)

        d, n = asked["d"], asked["features"]
        self.torch, self.device, self.keep, self.looked_at = torch, device, asked["k"] * asked["batch"], asked["looked_at"]
        self.x = numbers(asked["x"], asked["batch"], d)
        enc = numbers(asked["enc"], n, d)
        self.dec = enc.clone().requires_grad_()
        self.enc = enc.T.contiguous().requires_grad_()
        self.b_enc = torch.zeros(n, device=device, requires_grad=True)
        self.b_dec = torch.zeros(d, device=device, requires_grad=True)
        self.optimiser = torch.optim.Adam([self.enc, self.dec, self.b_enc, self.b_dec], lr=asked["rate"])

    def step(self):
        torch = self.torch
        with Timed(torch, self.device) as timed:
            self.optimiser.zero_grad(set_to_none=True)
            pre = torch.relu((self.x - self.b_dec) @ self.enc + self.b_enc)
            top = pre.flatten().topk(self.keep, sorted=False)
            f = torch.zeros_like(pre).flatten().scatter(-1, top.indices, top.values).reshape(pre.shape)
            error = f @ self.dec + self.b_dec - self.x
            error.pow(2).sum(-1).mean().backward()
            with torch.no_grad():  # gradients along the rows are left out, and the rows stay unit
                self.dec.grad -= (self.dec.grad * self.dec).sum(-1, keepdim=True) * self.dec
            self.optimiser.step()
            with torch.no_grad():
                self.dec /= self.dec.norm(dim=-1, keepdim=True)
        with torch.no_grad():
            x, e = self.x[: self.looked_at], error[: self.looked_at]
            return {"seconds": timed.seconds, "fvu": (e.pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item()}


class Model:
    def __init__(self, torch, transformers, device, asked):
        self.torch, self.device, self.vocab = torch, device, asked["vocab"]
        config = transformers.LlamaConfig(
            vocab_size=asked["vocab"], hidden_size=asked["width"], intermediate_size=asked["ff"], num_hidden_layers=asked["layers"],
            num_attention_heads=asked["heads"], num_key_value_heads=asked["kv"], head_dim=asked["head"], max_position_embeddings=asked["context"],
            rms_norm_eps=asked["eps"], tie_word_embeddings=False)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(device):
                self.model = transformers.LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)

    def ids(self, *shape):
        return self.torch.randint(self.vocab, shape, device=self.device)

    def prompt(self, n):
        ids = self.ids(1, n)
        with self.torch.no_grad(), Timed(self.torch, self.device) as timed:
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return {"seconds": timed.seconds}

    def decode(self, n, warm=8):
        with self.torch.no_grad():
            out = self.model(input_ids=self.ids(1, 64), use_cache=True, logits_to_keep=1)

            def one():
                nonlocal out
                out = self.model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)

            for _ in range(warm):
                one()
            with Timed(self.torch, self.device) as timed:
                for _ in range(n):
                    one()
        return {"seconds": timed.seconds}


class Lora:
    def __init__(self, torch, peft, model, asked):
        self.torch, self.device = torch, model.device
        self.model = peft.get_peft_model(model.model, peft.LoraConfig(r=asked["rank"], lora_alpha=asked["rank"], lora_dropout=0.0, target_modules="all-linear",
                                                                      task_type="CAUSAL_LM"))
        self.model.train()
        self.optimiser = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-4)
        self.ids = model.ids(asked["sequences"], asked["length"] + 1)
        self.targets = self.ids[:, 1:].clone()
        self.targets[:, : asked["length"] * 3 // 4] = -100

    def step(self):
        with Timed(self.torch, self.device) as timed:
            self.optimiser.zero_grad(set_to_none=True)
            logits = self.model(input_ids=self.ids[:, :-1], use_cache=False).logits
            loss = self.torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), self.targets.reshape(-1), ignore_index=-100)
            loss.backward()
            self.optimiser.step()
        return {"seconds": timed.seconds, "loss": loss.item()}


def serve(lines, answer):
    try:
        import peft
        import torch
        import transformers
    except ImportError as why:
        raise SystemExit(f"{why}; this Python needs: pip install torch transformers peft") from why
    asked = json.loads(next(lines))
    device = torch.device(asked["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this PyTorch finds no card (torch.cuda.is_available() is false)")
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    answer({"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__, "python": sys.version.split()[0],
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"})
    model = steps = None

    def free():
        import gc
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def do(what):
        nonlocal model, steps
        if what == "close":
            model = steps = None
            free()
            return {}
        if (what == "step" and steps is None) or (what != "step" and what.keys() & {"prompt", "decode"} and model is None) or (
                what != "step" and what.get("open") == "peft" and model is None):
            return {"skipped": "PyTorch: what was open had to go for want of memory"}
        if what == "step":
            return steps.step()
        if "prompt" in what:
            return model.prompt(what["prompt"])
        if "decode" in what:
            return model.decode(what["decode"])
        if what.get("open") == "dictionary":
            steps = Dictionary(torch, device, what)
        elif what.get("open") == "model":
            model = Model(torch, transformers, device, what)
        elif what.get("open") == "peft":
            steps = Lora(torch, peft, model, what)
        else:
            raise ValueError(f"not a request: {str(what)[:80]!r}")
        return {}

    for line in lines:
        try:
            told = do(json.loads(line))
        except torch.OutOfMemoryError as why:
            model = steps = None
            told = {"skipped": f"PyTorch: {str(why)[:200]}"}
        if "skipped" in told:  # after the exception, which holds what it came from
            free()
        answer(told)


def main():
    cuda = os.environ.get("CUDA_VISIBLE_DEVICES")
    from bench_peft import run  # which hides the cards from the other scripts
    if cuda is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = cuda
    return run(serve)


if __name__ == "__main__":
    sys.exit(main())
