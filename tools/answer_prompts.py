#!/usr/bin/env python3
"""Public prompts that the model answers itself, for the dictionary's corpus.

usage: answer_prompts.py DATA PROMPTS.jsonl [--limit N]

Reads prompt sets below DATA (arena-hard v2, OpenAssistant, MBPP, home utterances, CLINC150), shuffles each with a fixed seed and takes
them in turn. One prompt a line: {"prompt": ..., "src": SET}. Then: espalier answer PROMPTS.jsonl --out answers.jsonl
"""
import argparse
import itertools
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
    p.add_argument("data"), p.add_argument("out")
    p.add_argument("--limit", type=int, default=1500)
    o = p.parse_args()
    with open(o.out, "w", encoding="utf-8") as out:
        for name, prompt in itertools.islice(prompts(o.data), o.limit):
            out.write(json.dumps({"prompt": prompt, "src": name}, ensure_ascii=False) + "\n")


main()
