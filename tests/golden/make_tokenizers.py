#!/usr/bin/env python3
"""Writes tokenizers/: small vocabularies of every kind that is read, trained on tokenizer.txt, and hashes (make_token_hashes.py's) of its lines' ids.

    pip install sentencepiece tokenizers gguf; make_tokenizers.py

Over characters, by SentencePiece: gemma (user-defined runs of newlines and spaces, and tags; no space in front) and llama (a space in front), each as a
GGUF without tensors and as a tokenizer.json with the merges that Hugging Face's converter makes of the pieces. NAME.hash has SentencePiece's
ids; NAME.json.hash has those of tokenizers, which differ where a run of newlines is longer than its longest token.
Over bytes, by tokenizers: llama3 (merges ignored for whole pieces), qwen (composed first), smollm, gpt2, each a tokenizer.json.
"""
import json
import os
import struct
import sys

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from make_token_hashes import fnv

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "tokenizers")
LINES = open(os.path.join(HERE, "tokenizer.txt"), encoding="utf-8", newline="\n").read().split("\n")[:-1]
TEXTS = [a + "\n" * (1 + i % 5) + b + "\n" for i, (a, b) in enumerate(zip(LINES, LINES[1:]))]  # runs of newlines too
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def write_hashes(name, encode):
    with open(os.path.join(OUT, name + ".hash"), "wb") as f:
        ids = [encode(s) for s in TEXTS]
        f.write(b"".join(struct.pack("<I", 0 if i is None else fnv(i)) for i in ids))


def write_json(name, tok, bos):
    os.makedirs(os.path.join(OUT, name), exist_ok=True)
    with open(os.path.join(OUT, name, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(json.loads(tok.to_str()), f, ensure_ascii=False, separators=(",", ":"))
    with open(os.path.join(OUT, name, "tokenizer_config.json"), "w") as f:
        json.dump({"bos_token": bos, "eos_token": {"content": "<eos>"}}, f)


def characters(name, prefix, user):
    model = os.path.join(OUT, name)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=model, model_type="bpe", vocab_size=1400, byte_fallback=True, character_coverage=0.98,
        add_dummy_prefix=prefix, remove_extra_whitespaces=False, normalization_rule_name="identity", split_digits=True,
        unk_id=3, bos_id=2, eos_id=1, pad_id=0, unk_piece="<unk>", bos_piece="<bos>", eos_piece="<eos>", pad_piece="<pad>",
        control_symbols=["<start_of_turn>", "<end_of_turn>"], user_defined_symbols=user, minloglevel=2)
    sp = sentencepiece.SentencePieceProcessor(model_file=model + ".model")
    os.remove(model + ".model")
    os.remove(model + ".vocab")
    pieces, scores, types = [], [], []
    for i in range(sp.vocab_size()):
        piece = sp.id_to_piece(i)
        kind = BYTE if sp.is_byte(i) else CONTROL if sp.is_control(i) else UNKNOWN if sp.is_unknown(i) else USER if piece in user else NORMAL
        pieces.append(piece.replace("\u2581", " ") if kind == USER else piece)  # as llama.cpp's converter writes them
        scores.append(sp.get_score(i))
        types.append(kind)
    w = gguf.GGUFWriter(model + ".gguf", "llama")
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(pieces)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(2)
    w.add_eos_token_id(1)
    w.add_unk_token_id(3)
    w.add_add_space_prefix(prefix)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    # A written U+2581 is a space to all, but only SentencePiece finds user-defined runs of spaces with it: 0, not compared.
    write_hashes(name, lambda s: sp.encode(s) if "\u2581" not in s else None)

    vocab = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    able = {p: i for p, i in vocab.items() if types[i] in (NORMAL, USER)}
    merges = []
    for p, i in able.items():
        parts = [(p[:k], p[k:]) for k in range(1, len(p)) if p[:k] in able and p[k:] in able]
        merges += [(scores[i], j, a, b) for j, (a, b) in enumerate(sorted(parts, key=lambda x: (able[x[0]], able[x[1]])))]
    merges.sort(key=lambda m: -m[0])
    tok = Tokenizer(models.BPE(vocab=vocab, merges=[(a, b) for _, _, a, b in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "\u2581")
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix else replace
    if not prefix:
        tok.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tok.add_special_tokens([AddedToken(sp.id_to_piece(i), special=True, normalized=False) for i in range(len(types)) if types[i] in (CONTROL, UNKNOWN)])
    tok.add_tokens([AddedToken(u, special=False, normalized=False) for u in user])
    tok.post_processor = processors.TemplateProcessing(single=["<bos>", "$A"], special_tokens=[("<bos>", 2)])
    write_json(name, tok, "<bos>")
    tok.encode_special_tokens = True
    write_hashes(name + ".json", lambda s: tok.encode(s, add_special_tokens=False).ids)
    return tok, sp


def trained():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=560, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return json.loads(tok.to_str())["model"]


def over_bytes(name, model, cut, composed=False, whole=False, first=False):
    vocab, merges = dict(model["vocab"]), [tuple(m) for m in model["merges"]]
    if whole:  # a token that its merges do not make
        vocab["\u0120adapter"] = len(vocab)
    tok = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole))
    tok.pre_tokenizer = cut
    if composed:
        tok.normalizer = normalizers.NFC()
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<bos>", "<eos>", "<|im_start|>", "<|im_end|>")])
    tok.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    if first:
        n = tok.token_to_id("<bos>")
        tok.post_processor = processors.Sequence([processors.ByteLevel(), processors.TemplateProcessing(single=["<bos>", "$A"], special_tokens=[("<bos>", n)])])
    write_json(name, tok, "<bos>" if first else None)
    tok.encode_special_tokens = True
    write_hashes(name, lambda s: tok.encode(s, add_special_tokens=False).ids)


def main():
    os.makedirs(OUT, exist_ok=True)
    user = ["\n" * k for k in range(1, 4)] + ["\u2581" * k for k in range(2, 9)] + ["<b>", "</b>", "<table>"]
    characters("gemma", False, user)
    characters("llama", True, [])
    model, byte = trained(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = lambda digits: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CL100K % digits), "isolated"), byte])
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    over_bytes("llama3", model, split("{1,3}"), whole=True, first=True)
    over_bytes("qwen", model, split(""), composed=True)
    over_bytes("smollm", model, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole]))
    over_bytes("gpt2", model, whole)


if __name__ == "__main__":
    sys.path.insert(0, HERE)
    main()
