#!/usr/bin/env python3
"""Makes scores.json: each token's log-probability by transformers on the same GGUF file, dequantised, in f32.

    pip install transformers torch gguf
    python3 make_scores.py SmolLM2-135M-Instruct.Q4_1.gguf > scores.json

Texts: passages in the public domain and lines written for this test."""
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PLAIN = {
    "dickens": "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it was the spring of hope, it was the winter of despair, we had everything before us, we had nothing before us.",
    "austen": "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property of some one or other of their daughters.",
    "melville": "Call me Ishmael. Some years ago—never mind how long precisely—having little or no money in my purse, and nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the world. It is a way I have of driving off the spleen and regulating the circulation.",
    "carroll": "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, “and what is the use of a book,” thought Alice “without pictures or conversations?”",
    "lincoln": "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and dedicated to the proposition that all men are created equal. Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived and so dedicated, can long endure.",
    "shakespeare": "Shall I compare thee to a summer's day?\nThou art more lovely and more temperate:\nRough winds do shake the darling buds of May,\nAnd summer's lease hath all too short a date;\nSometime too hot the eye of heaven shines,\nAnd often is his gold complexion dimm'd;",
    "darwin": "When on board H.M.S. 'Beagle,' as naturalist, I was much struck with certain facts in the distribution of the inhabitants of South America, and in the geological relations of the present to the past inhabitants of that continent. These facts seemed to me to throw some light on the origin of species—that mystery of mysteries, as it has been called by one of our greatest philosophers.",
    "doyle": "To Sherlock Holmes she is always the woman. I have seldom heard him mention her under any other name. In his eyes she eclipses and predominates the whole of her sex. It was not that he felt any emotion akin to love for Irene Adler.",
    "french": "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient si vite que je n'avais pas le temps de me dire : « Je m'endors. »",
    "german": "Habe nun, ach! Philosophie, Juristerei und Medizin, und leider auch Theologie durchaus studiert, mit heißem Bemühn. Da steh ich nun, ich armer Tor! Und bin so klug als wie zuvor.",
    "japanese": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "chinese": "学而时习之,不亦说乎?有朋自远方来,不亦乐乎?人不知而不愠,不亦君子乎?",
    "recipe": "Lentil soup for four\n\nIngredients:\n- 250 g brown lentils\n- 1 onion, 2 carrots, 1 stick of celery\n- 1.5 l vegetable stock\n- 2 tbsp olive oil, salt, pepper\n\n1. Chop the vegetables and soften them in the oil for ten minutes.\n2. Add the lentils and the stock, bring to the boil, then simmer for 35 minutes.\n3. Season, and serve with bread.",
    "letter": "Dear Ms. Okafor,\n\nthank you for your patience. The replacement lamp left our warehouse this morning and should reach you by Thursday, 14 March. If the box is damaged in any way, please refuse it; we'll send another at no cost.\n\nKind regards,\nTomas Lind",
    "news": "The river rose 1.2 metres overnight, and by 6 a.m. two of the town's three bridges were closed. \"We have seen higher water, but never this early in the year,\" said the mayor. Schools will stay shut until Wednesday.",
    "python": "def primes(limit):\n    \"\"\"All primes below limit, by the sieve of Eratosthenes.\"\"\"\n    sieve = bytearray([1]) * limit\n    sieve[:2] = b\"\\0\\0\"\n    for i in range(2, int(limit ** 0.5) + 1):\n        if sieve[i]:\n            sieve[i * i::i] = bytes(len(sieve[i * i::i]))\n    return [i for i, is_prime in enumerate(sieve) if is_prime]\n\n\nprint(primes(50))\n",
    "c": "#include <stdio.h>\n\nstatic int gcd(int a, int b)\n{\n\twhile (b) {\n\t\tint t = a % b;\n\t\ta = b;\n\t\tb = t;\n\t}\n\treturn a;\n}\n\nint main(void)\n{\n\tprintf(\"%d\\n\", gcd(84, 36)); /* 12 */\n\treturn 0;\n}\n",
    "sql": "SELECT c.name, COUNT(o.id) AS orders, SUM(o.total) AS revenue\nFROM customers AS c\nLEFT JOIN orders AS o ON o.customer_id = c.id\nWHERE o.created_at >= '2023-01-01'\nGROUP BY c.name\nHAVING SUM(o.total) > 1000\nORDER BY revenue DESC\nLIMIT 10;\n",
    "shell": "#!/bin/sh\nset -eu\nfor f in *.tar.gz; do\n    [ -e \"$f\" ] || continue\n    echo \"unpacking $f\"\n    tar -xzf \"$f\" && rm -- \"$f\"\ndone\n",
    "json": "{\n  \"name\": \"weather\",\n  \"version\": \"2.4.1\",\n  \"stations\": [\n    {\"id\": 17, \"lat\": 52.37, \"lon\": 4.90, \"active\": true},\n    {\"id\": 18, \"lat\": 48.86, \"lon\": 2.35, \"active\": false}\n  ],\n  \"units\": null\n}\n",
    "maths": "Let f(x) = x^2 - 4x + 3. Then f(x) = (x - 1)(x - 3), so the roots are x = 1 and x = 3, and the minimum lies halfway between them, at x = 2, where f(2) = -1. Since f''(x) = 2 > 0, the parabola opens upwards.",
    "emoji": "omg the cake was SO good 🎂🎉!!! thx for coming everyone ❤️ see u next week 👋🏽 (bring ur own 🍴 lol)",
    "spaces": "a\tb  c   d    e\n\n\n   indented\n\t\ttabs\n\n- item\n  - item  \n\n1,000,000 and 3.14159  and 0x7F\n",
    "odd": "Ünïcödé — “quotes”, …ellipsis, naïve café, Ωμέγα, Ещё раз, 1½ × 2 = 3, ½ ≤ ⅔, £5, €20, C♯, №7",
}
CHATS = {
    "chat-greeting": [("user", "Hi! Who are you?"), ("assistant", "I'm a small language model. I can answer questions, write short texts and help you think. What would you like to do?")],
    "chat-facts": [("user", "What is the boiling point of water at sea level, in Celsius and in Fahrenheit?"), ("assistant", "At sea level, water boils at 100 degrees Celsius, which is 212 degrees Fahrenheit.")],
    "chat-system": [("system", "You are a terse assistant. Answer in one sentence."), ("user", "Why is the sky blue?"), ("assistant", "Air scatters blue light more than red light, so blue reaches our eyes from every part of the sky.")],
    "chat-code": [("user", "Write a Python function that reverses a string."), ("assistant", "Here is one:\n\n```python\ndef reverse(text):\n    return text[::-1]\n```\n\nCalling `reverse(\"abc\")` gives `\"cba\"`.")],
    "chat-turns": [("user", "Suggest a name for a grey cat."), ("assistant", "How about Ash?"), ("user", "Something longer?"), ("assistant", "Then Sir Stormcloud of Whiskerton."), ("user", "Perfect, thanks!"), ("assistant", "You're welcome! Give Sir Stormcloud a scratch behind the ears from me.")],
    "chat-polite": [("user", "i lost my keys again, i'm so annoyed"), ("assistant", "That is frustrating, I'm sorry. When did you last have them in your hand? Try retracing your steps from there: coat pockets, the door itself, the kitchen counter.")],
}


def main():
    folder, name = os.path.split(os.path.abspath(sys.argv[1]))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32).eval()
    texts = [(k, tokenizer.encode(t, add_special_tokens=False)) for k, t in PLAIN.items()]
    for key, turns in CHATS.items():
        rendered = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
        texts.append((key, tokenizer.encode(rendered, add_special_tokens=False)))
    lines = []
    for key, ids in texts:
        with torch.no_grad():
            logprob = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scores = [round(logprob[i, ids[i + 1]].item(), 5) for i in range(len(ids) - 1)]
        lines.append(json.dumps({"name": key, "ids": ids, "logprobs": [None] + scores}, separators=(",", ":")))
    print("[\n" + ",\n".join(lines) + "\n]")
    assert len(texts) == 30


main()
