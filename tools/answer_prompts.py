#!/usr/bin/env python3
"""The model's own answers to public prompts, for the dictionary's corpus.

usage: answer_prompts.py MODEL.gguf DATA OUT.jsonl [--tokens N] [--threads N]

Reads prompt sets below DATA (arena-hard v2, OpenAssistant, MBPP, home utterances, CLINC150), shuffles each with a fixed seed, takes
them in turn and lets the model answer in its own template (llama-cpp-python, temperature 0.7, top-p 0.95, a seed a prompt) until
N answer tokens are there. One chat a line: {"messages": [...], "src": SET}. `espalier answer` does the same without Python.
"""
import argparse
import json
import os
import random


def rows(path):
    with open(path, encoding="utf-8") as f:
        for line in f:
            if line.strip():
                yield json.loads(line)


def prompts(data):
    a = os.path.join(data, "assistant")
    sets = {
        "arena-hard-v2": [r["prompt"] for r in rows(f"{a}/arena_hard_v2_prompts.jsonl")],
        "oasst": [r["prompt"]["text"] for r in rows(f"{a}/oasst_en_100_tree.jsonl")],
        "mbpp": [r["text"] for r in rows(os.path.join(data, "coding", "mbpp.jsonl"))],
        "nlu-home": [r["text"] for r in rows(f"{a}/nlu_home_utterances.jsonl")],
        "clinc150": [r["text"] for r in rows(f"{a}/clinc150_train.jsonl")],
    }
    for name, items in sets.items():
        items = [p for p in dict.fromkeys(items) if 8 <= len(p) <= 900]
        random.Random(name).shuffle(items)
        sets[name] = items
    turns = {"arena-hard-v2": 3, "oasst": 1, "mbpp": 2, "nlu-home": 2, "clinc150": 2}
    while any(sets.values()):
        for name, n in turns.items():
            for _ in range(n):
                if sets[name]:
                    yield name, sets[name].pop()


def main():
    p = argparse.ArgumentParser()
    p.add_argument("model"), p.add_argument("data"), p.add_argument("out")
    p.add_argument("--tokens", type=int, default=100000)
    p.add_argument("--threads", type=int, default=2)
    o = p.parse_args()
    import llama_cpp

    llm = llama_cpp.Llama(o.model, n_ctx=2048, n_threads=o.threads, n_threads_batch=o.threads, verbose=False)
    total = 0
    with open(o.out, "w", encoding="utf-8") as out:
        for seed, (name, prompt) in enumerate(prompts(o.data)):
            r = llm.create_chat_completion([{"role": "user", "content": prompt}], temperature=0.7, top_p=0.95, top_k=50,
                                           repeat_penalty=1.1, seed=seed, max_tokens=280)
            answer = r["choices"][0]["message"]["content"].strip()
            total += r["usage"]["completion_tokens"]
            if answer:
                chat = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], "src": name}
                out.write(json.dumps(chat, ensure_ascii=False) + "\n")
                out.flush()
            if total >= o.tokens:
                break


main()
