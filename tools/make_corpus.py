#!/usr/bin/env python3
"""The corpus the default dictionaries are harvested from.

usage: make_corpus.py DATA OUT [--answers ANSWERS.jsonl] [--sample]

DATA: the unpacked data folder. Writes OUT/corpus.jsonl (the harvest reads it in a shuffled order), OUT/held-out.jsonl and prints how
many characters of each kind there are. Deterministic. Every document of the general data is in it, a long one with one stretch of
about CUT characters (a context of 256 tokens, from a random line on), so that the long technical texts and film reviews do not crowd out
talk: about 7.5 million tokens. --sample: whole documents instead, and only a share of each kind, about 2.4 million tokens (the corpus of the
sweep over layers). Left out in both: every *_nc file (non-commercial licences). Dialogues become {"messages"}, which the harvest renders in the
model's own template; the rest is {"text"}. --answers: chats with the model's own answers (tools/answer_prompts.py).
"""
import argparse
import collections
import json
import os
import random
import re

# share of each kind's documents that is kept
KEEP = {"techdoc": 0.055, "code": 0.08, "review": 0.1, "book": 0.1, "reference": 0.1, "quote": 0.25, "mixed-genre": 0.3, "wiki": 0.5,
        "web": 0.6, "techdoc-md": 0.12, "multilingual-md": 0.1, "dialogue-assistant": 0.18, "dialogue": 0.25, "chat": 0.4}
CUT = 1100
TURN = re.compile(r"^(User|Assistant|System): ?", re.M)


def messages(text):
    """A "User: ... Assistant: ..." transcript as messages; None when it is not one."""
    parts = TURN.split(text)
    if parts[0].strip() or len(parts) < 5:
        return None
    turns = []
    for role, content in zip(parts[1::2], parts[2::2]):
        content = content.strip()
        if not content:
            continue
        if turns and turns[-1]["role"] == role.lower():
            turns[-1]["content"] += "\n" + content
        else:
            turns.append({"role": role.lower(), "content": content})
    if len(turns) < 2 or turns[0]["role"] == "assistant" or not any(t["role"] == "assistant" for t in turns):
        return None
    return turns


def convert(row):
    turns = messages(row["text"]) if row["kind"] in ("chat", "dialogue", "dialogue-assistant") else None
    return {"messages": turns} if turns else {"text": row["text"]}


def stretch(text, pick):
    """At most about CUT characters of a text, from the beginning of a line where there is one."""
    if len(text) <= CUT:
        return text
    start = pick.randrange(len(text) - CUT + 1)
    line = text.find("\n", start, start + CUT // 4)
    word = text.find(" ", start, start + CUT // 4)
    start = line + 1 if line >= 0 else word + 1 if word >= 0 else start
    return text[start:start + CUT]


def opening(turns):
    """The first turns of a dialogue, about CUT characters."""
    kept, size = [], 0
    for turn in turns:
        if size >= CUT:
            break
        kept.append(turn)
        size += len(turn["content"])
    return kept


def shortened(row, pick):
    return {"messages": opening(row["messages"])} if "messages" in row else {"text": stretch(row["text"], pick)}


def length(row):
    return sum(len(m["content"]) for m in row["messages"]) if "messages" in row else len(row["text"])


def rows(path):
    with open(path, encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("data"), p.add_argument("out"), p.add_argument("--answers"), p.add_argument("--sample", action="store_true")
    o = p.parse_args()
    os.makedirs(o.out, exist_ok=True)
    size = collections.Counter()
    pick = random.Random(1)
    with open(os.path.join(o.out, "corpus.jsonl"), "w", encoding="utf-8") as out:
        for row in rows(os.path.join(o.data, "general", "general.train.jsonl")):
            if o.sample and pick.random() >= KEEP.get(row["kind"], 1.0):
                continue
            new = convert(row) if o.sample else shortened(convert(row), pick)
            size[row["kind"] + (" (template)" if "messages" in new else "")] += length(new)
            out.write(json.dumps(new, ensure_ascii=False) + "\n")
        if o.answers:
            for row in rows(o.answers):
                size["own answers (template)"] += sum(len(m["content"]) for m in row["messages"])
                out.write(json.dumps({"messages": row["messages"]}, ensure_ascii=False) + "\n")
    with open(os.path.join(o.out, "held-out.jsonl"), "w", encoding="utf-8") as out:
        pick = random.Random(2)
        for row in rows(os.path.join(o.data, "general", "general.dev.jsonl")):
            if pick.random() < KEEP.get(row["kind"], 1.0) * 4:
                out.write(json.dumps(convert(row), ensure_ascii=False) + "\n")
    total = sum(size.values())
    for kind, n in size.most_common():
        print(f"{kind:34} {n:10} characters {100 * n / total:5.1f} %")
    print(f"{'all':34} {total:10}")


main()
