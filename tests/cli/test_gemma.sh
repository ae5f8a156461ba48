#!/usr/bin/env bash
# Another family's real model from end to end: Gemma 3 270M, a base model with a SentencePiece vocabulary. Where the file is.
gemma=${ESPALIER_TEST_GEMMA:-${XDG_DATA_HOME:-$HOME/.local/share}/espalier/models/gemma-3-270m-q4_k_m.gguf}
. "$(dirname "$0")/lib.sh"
[ -r "$gemma" ] || { echo "skipped: Gemma 3 270M is not here (ESPALIER_TEST_GEMMA; espalier fetch gemma3-270m gets it)"; exit 77; }
m=(--model "$gemma")

want 0 doctor "${m[@]}" --json
is '[f for f in v["findings"] if f["name"] == "template" and "no chat template" in f["text"] and "Gemma" in f["text"]]' out || fail "doctor does not say that there is no template"

want 0 tokenize $'Hello,  w\xc3\xb6rld\n\n\xf0\x9f\xab\xa0 <start_of_turn>' "${m[@]}" --json # the last in three tokens and more: text, not control
is '"".join(v["pieces"]).startswith("Hello,  w\u00f6rld") and 105 not in v["tokens"] and v["tokens"][0] == 9259' out || fail "tokenize"
want 0 tokenize '<start_of_turn>' "${m[@]}" --special --json; is 'v["tokens"] == [105]' out || fail "tokenize --special"

printf 'The capital of France is Paris. The capital of Germany is Berlin.' >text.txt
want 0 score text.txt "${m[@]}" --json
is 'v["tokens"][0] == 2 and v["mean"] > -3' out || fail "score: a text begins with <bos>, and this one is no surprise"

want 0 chat --prompt "The capital of France is" --temperature 0 --max-tokens 8 "${m[@]}"
[ "$(wc -c <out)" -gt 3 ] || fail "no answer"
grep -q "has no chat template" err || fail "chat does not warn of the missing template"
cp out one; want 0 chat --prompt "The capital of France is" --temperature 0 --max-tokens 8 "${m[@]}" --quiet; cmp -s one out || fail "greedy answers differ"
[ ! -s err ] || fail "--quiet warns"

# A dictionary from it: few tokens, few steps; that it runs, and that what it makes opens
python3 -c 'import json
for i in range(40): print(json.dumps({"text": "In the year %d the river rose %d feet, and %d houses were lost." % (1800 + i, i % 7 + 3, i * 5 % 13)}))' >texts.jsonl
want 0 harvest texts.jsonl --layers 9 --out harvest "${m[@]}"
want 0 train harvest --layer 9 --out dict --features 256 --k 8 --tokens 2000 "${m[@]}"
want 0 encode text.txt --dictionary dict "${m[@]}" --json
is 'v["layer"] == 9 and len(v["tokens"]) > 10 and v["tokens"][0]["id"] == 2' out || fail "encode"
