#!/usr/bin/env python3
"""Writes tokens/smollm2.hash and tokens/gemma3.hash: a 32-bit FNV-1a hash (little-endian) of the ids of each text in the public data (ESPALIER_TEST_DATA),
in the order of TEXTS, and then of each line of tokenizer.txt; some 16,000 texts in 400 languages and all their scripts, code, prose.

    pip install gguf tokenizers llama-cpp-python
    make_token_hashes.py DATA SmolLM2-135M-Instruct.Q4_1.gguf gemma3-270m.gguf

SmolLM2: Hugging Face's tokenizers, built from the file's own vocabulary and merges (make_tokenizer.py says how). Gemma 3: llama.cpp.
"""
import json
import os
import struct
import sys

TEXTS = [("concepts/udhr_langid.jsonl", "text"), ("general/general.dev.jsonl", "text"), ("retention/wikitext2_valid.txt", None)]


GEMMA_STRIKE_END = 212


def texts(data):
    for name, key in TEXTS:
        with open(os.path.join(data, name), encoding="utf-8", newline="\n") as f:
            for line in f:
                line = line[:-1] if line.endswith("\n") else line
                if key is None:
                    yield line
                elif line:
                    yield json.loads(line)[key]
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer.txt"), encoding="utf-8", newline="\n") as f:
        yield from f.read().split("\n")[:-1]


def fnv(ids):
    h = 0x811C9DC5
    for byte in struct.pack("<%di" % len(ids), *ids):
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h


def smollm2(path):
    import gguf
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    reader = gguf.GGUFReader(path)
    field = lambda k: reader.fields["tokenizer.ggml." + k].contents()
    tokens = field("tokens")
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in field("merges")]))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, field("token_type")) if k == 3])
    tok.encode_special_tokens = True  # control tokens written in the text stay text
    return lambda s: tok.encode(s, add_special_tokens=False).ids


def gemma3(path):
    import llama_cpp

    llm = llama_cpp.Llama(path, vocab_only=True, verbose=False)

    def encode(s):
        # To llama.cpp a token of the name </s> is control whatever the file says; Gemma's is HTML's, a user-defined token like <b> and </b>.
        parts = [llm.tokenize(part.encode(), add_bos=False, special=False) for part in s.split("</s>")]
        return parts[0] + [i for part in parts[1:] for i in [GEMMA_STRIKE_END] + part]

    return encode


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    for name, encode in (("smollm2", smollm2(sys.argv[2])), ("gemma3", gemma3(sys.argv[3]))):
        out, count = b"", 0
        for s in texts(sys.argv[1]):
            ids = encode(s)
            out += struct.pack("<I", fnv(ids))
            count += len(ids)
        with open(os.path.join(here, "tokens", name + ".hash"), "wb") as f:
            f.write(out)
        print(name, len(out) // 4, "texts,", count, "ids")


if __name__ == "__main__":
    main()
