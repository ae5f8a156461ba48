#!/usr/bin/env python3
"""Writes families/NAME/: a tiny random model of each family as transformers saves it (float16 values, computed with in float32), and
golden.safetensors: ids, the logits of every token, and the gradient of sum_t c_t log p(target_t) at the residual after layer HOOK.

    pip install torch transformers safetensors; python3 make_families.py families
"""
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HOOK, TOKENS, VOCAB = 1, 24, 323  # windows are shorter than the text; as many tokens as the tests' tiny tokenizer has

base = dict(vocab_size=VOCAB, hidden_size=24, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False, pad_token_id=None, bos_token_id=1,
            eos_token_id=2, initializer_range=0.25)
families = {
    "llama": dict(model_type="llama", rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "llama3": dict(model_type="llama", tie_word_embeddings=True, rope_parameters=dict(
        rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)),
    "qwen3": dict(model_type="qwen3", head_dim=16, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1e6)),
    "olmo2": dict(model_type="olmo2", head_dim=6, rope_parameters=dict(rope_type="default", rope_theta=5e5)),
    "olmo3": dict(model_type="olmo3", head_dim=6, num_hidden_layers=5, sliding_window=7, rope_parameters=dict(
        full_attention=dict(rope_type="yarn", rope_theta=5e5, factor=8.0, original_max_position_embeddings=32, beta_fast=4.0,
                            beta_slow=1.0, attention_factor=1.2079441541679836),
        sliding_attention=dict(rope_type="default", rope_theta=5e5))),
    "gemma2": dict(model_type="gemma2", tie_word_embeddings=True, sliding_window=7, query_pre_attn_scalar=12, attn_logit_softcapping=4.0,
                   final_logit_softcapping=6.0, hidden_activation="gelu_pytorch_tanh",
                   rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
    "gemma3": dict(model_type="gemma3_text", tie_word_embeddings=True, num_hidden_layers=7, sliding_window=7, query_pre_attn_scalar=8,
                   hidden_activation="gelu_pytorch_tanh", rope_parameters=dict(
                       full_attention=dict(rope_type="linear", factor=4.0, rope_theta=1e6),
                       sliding_attention=dict(rope_type="default", rope_theta=10000.0))),
}


def make(name, facts, folder):
    facts = {**base, **facts}
    config = AutoConfig.for_model(facts.pop("model_type"), **facts)
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key:  # any norm matters only when its weights differ
                p.add_(0.3 * torch.randn_like(p))
            elif "proj" in key:
                p.normal_(0, 1.3 * p.shape[1] ** -0.5)
            p.copy_(p.half().float())
    ids = torch.randint(0, VOCAB, (TOKENS,))
    target = torch.randint(0, VOCAB, (TOKENS,))
    weight = torch.randn(TOKENS)
    kept = {}

    def hook(module, inputs, output):
        h = output[0] if isinstance(output, tuple) else output
        h.retain_grad()
        kept["h"] = h

    model.model.layers[HOOK].register_forward_hook(hook)
    logits = model(ids[None]).logits[0]
    (weight * torch.log_softmax(logits, -1)[torch.arange(TOKENS), target]).sum().backward()
    out = os.path.join(folder, name)
    shutil.rmtree(out, ignore_errors=True)
    model.half().save_pretrained(out, max_shard_size="16kB" if name == "llama3" else "5GB")
    if os.path.exists(os.path.join(out, "generation_config.json")):
        os.remove(os.path.join(out, "generation_config.json"))
    save_file({"ids": ids.int(), "target": target.int(), "weight": weight, "logits": logits.detach().contiguous(),
               "residual": kept["h"].detach()[0].contiguous(), "gradient": kept["h"].grad[0].contiguous()},
              os.path.join(out, "golden.safetensors"))
    print(name, logits.std().item(), kept["h"].grad.norm().item(), sum(p.numel() for p in model.parameters()))


for name, facts in families.items():
    make(name, facts, sys.argv[1])
