#!/usr/bin/env python3
"""Turns public preference data into experiences, one JSON object a line: messages, preferred, rejected.

  tools/make_pairs.py brevity   concise_vs_verbose.jsonl       > brevity.jsonl    (concise preferred to verbose; concise of at most 35 words, so
                                                                  that it fits into the cut with its end, and verbose 1.5 times as long)
  tools/make_pairs.py bluntness polite_vs_impolite_pairs.jsonl > bluntness.jsonl  (impolite preferred to polite)

Pairs whose replies are the same, empty, or too alike to tell apart (at most one word differs), and repeated questions, are left out; how many is said on
standard error.
"""
import json
import sys


def brevity(row):
    return row["instruction"], row["concise"], row["verbose"]


def bluntness(row):
    ask = row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "")
    return ask, row["rejected"], row["chosen"]


def differ(a, b):
    """Words that are in one of the two and not in the other."""
    a, b = a.lower().split(), b.lower().split()
    return len(set(a) ^ set(b))


def main():
    kinds = {"brevity": brevity, "bluntness": bluntness}
    if len(sys.argv) != 3 or sys.argv[1] not in kinds:
        sys.exit(__doc__)
    kept, left, seen = 0, 0, set()
    with open(sys.argv[2], encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                ask, preferred, rejected = (text.strip() for text in kinds[sys.argv[1]](json.loads(line)))
            except (ValueError, KeyError, AttributeError) as e:
                sys.exit(f"{sys.argv[2]}:{number}: {e!r}")
            if not ask or not preferred or not rejected or differ(preferred, rejected) < 2 or ask in seen:
                left += 1
                continue
            if sys.argv[1] == "brevity" and (len(preferred.split()) > 35 or len(rejected.split()) < 1.5 * len(preferred.split())):
                left += 1
                continue
            seen.add(ask)
            kept += 1
            print(json.dumps({"messages": [{"role": "user", "content": ask}], "preferred": preferred, "rejected": rejected,
                              "source": sys.argv[1]}, ensure_ascii=False))
    print(f"{kept} pairs, {left} left out", file=sys.stderr)


if __name__ == "__main__":
    main()
