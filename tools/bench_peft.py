#!/usr/bin/env python3
"""A step of PEFT's LoRA on all linear layers, for `espalier bench --against peft`, which runs this and asks for a step at a time so
that the two sides take turns on the machine.

A line of JSON in, a line of JSON out. First {"model": FILE.gguf or a transformers folder, "threads", "rank", "n_reply", "sequences":
[[ids]...]}: of each sequence the last n_reply tokens are learned from. Answer: versions and what was loaded. Then for each line
"step" the seconds of forward, backward and AdamW, and the loss before it. A line {"error"} ends it.

Needs torch, transformers, peft and gguf. Nothing is downloaded.
"""
import json
import os
import sys
import time

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TRANSFORMERS_VERBOSITY="error",
                  HF_HUB_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")


def llama_of_gguf(path, transformers):
    """A llama of the file's shape with random numbers: a step takes as long as with the right ones."""
    from gguf import GGUFReader
    fields = GGUFReader(path).fields

    def number(key, default=None):
        field = fields.get("llama." + key)
        if field is None and default is None:
            raise ValueError(f"{path}: no llama.{key}")
        return field.parts[field.data[0]][0].item() if field is not None else default

    tokens = len(fields["tokenizer.ggml.tokens"].data)
    config = transformers.LlamaConfig(
        vocab_size=tokens, hidden_size=number("embedding_length"), intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"), num_attention_heads=number("attention.head_count"),
        num_key_value_heads=number("attention.head_count_kv", number("attention.head_count")),
        max_position_embeddings=number("context_length", 2048), rms_norm_eps=number("attention.layer_norm_rms_epsilon", 1e-5),
        tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config).float()


def load(path, torch, transformers):
    """(model, what its numbers are)"""
    if os.path.isdir(path):
        return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True), "a transformers folder"
    folder, name = os.path.split(os.path.abspath(path))
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32, local_files_only=True)
        return model, "the GGUF file"
    except Exception as why:  # what this version of transformers cannot read
        model = llama_of_gguf(path, transformers)
        return model, f"random, in the file's shape: {type(why).__name__}: {str(why)[:200]}"


def serve(lines, answer):
    try:
        import gguf  # noqa: F401 (transformers says less clearly that it is missing)
        import peft
        import torch
        import transformers
    except ImportError as why:
        raise SystemExit(f"{why}; this Python needs: pip install torch transformers peft gguf") from why
    asked = json.loads(next(lines))
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(1)
    model, weights = load(asked["model"], torch, transformers)
    model = peft.get_peft_model(model, peft.LoraConfig(r=asked["rank"], lora_alpha=asked["rank"], lora_dropout=0.0, target_modules="all-linear",
                                                       task_type="CAUSAL_LM"))
    model.train()
    learned = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=1e-4)
    ids = torch.tensor(asked["sequences"])
    labels = ids.clone()
    labels[:, : ids.shape[1] - asked["n_reply"]] = -100
    # A sequence's last token is only ever a target: the same tokens go in as on the other side.
    inputs, targets = ids[:, :-1].contiguous(), labels[:, 1:].contiguous()
    answer({"torch": torch.__version__, "peft": peft.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0],
            "weights": weights, "parameters": sum(p.numel() for p in learned), "threads": torch.get_num_threads(), "tokens": inputs.numel()})
    for line in lines:
        if json.loads(line) != "step":
            raise ValueError(f"not a request: {line[:80]!r}")
        began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100)
        loss.backward()
        optimiser.step()
        answer({"seconds": time.perf_counter() - began, "loss": loss.item()})


def run(serve):
    """What every such script does around serve(lines, answer); the exit status."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(value):
        out.write(json.dumps(value) + "\n")
        out.flush()

    try:
        serve(iter(sys.stdin.readline, ""), answer)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except SystemExit as why:
        answer({"error": str(why)})
        return 1
    except Exception as why:
        answer({"error": f"{type(why).__name__}: {str(why)[:300]}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(serve))
