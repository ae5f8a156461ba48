#!/usr/bin/env bash
# Bad files of each kind: one clear line, exit 1, nothing printed, nothing lost.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
m=(--model tiny.gguf)
d=("${m[@]}" --dictionary dict)

size=$(stat -c %s tiny.gguf)
for cut in 0 3 4 8 24 100 1000 $((size / 2)) $((size - 1)); do
  head -c "$cut" tiny.gguf >cut.gguf
  refused 1 "cut.gguf" chat --prompt hi --model cut.gguf
done
refused 1 "of keys and values, needs" chat --prompt hi "${m[@]}" --memory 100k
grep -q "it may take 0.00 GB" err || fail "the limit is not named"
want 1 doctor --memory 100k "${m[@]}"; grep -q "!! model .*needs .* GB of memory" out || fail "doctor does not tell: $(cat out)"
want 0 doctor "${m[@]}"; grep -q "for keys and values" out || fail "doctor does not state the memory: $(cat out)"
refused 1 "texts.jsonl" chat --prompt hi --model texts.jsonl
refused 1 "without config.json" chat --prompt hi --model "$work"
refused 1 "cannot open" chat --prompt hi --model none.gguf
refused 1 "cannot open" score none.txt "${m[@]}"

bad() { refused 1 "$1" eval margin --experiences e.jsonl "${m[@]}"; }
printf '{"messages":[{"role":"user","content":"a"}],"preferred":"b"}\n{"messages":"x"}\n' >e.jsonl; bad "e.jsonl:2"
printf 'not json\n' >e.jsonl; bad "e.jsonl:1"
printf '{"messages":[{"role":"user","content":"a"}]}\n' >e.jsonl; bad "e.jsonl:1"
: >e.jsonl; bad "no experiences"
printf '\xff\xfe\n' >e.jsonl; bad "e.jsonl:1"
python3 -c 'print("[" * 100000)' >e.jsonl; bad "nested deeper"

refused 1 "there is no feature '96'" features show 96 "${d[@]}"
refused 1 "there is no feature 'x'" features show x "${d[@]}"
refused 1 "there is no feature 96" label add --feature 96 --text t "${d[@]}"
refused 1 "no such" drift none.safetensors "${d[@]}"
refused 1 "texts.jsonl" drift texts.jsonl "${d[@]}"
head -c 200 /dev/urandom >junk.safetensors; refused 1 "junk.safetensors" chat --prompt hi --adapter junk.safetensors "${d[@]}"

refused 1 "none" dictionary info none
mkdir empty; refused 1 "empty" dictionary info empty
cp -r dict other; head -c 5000 dict/sae_weights.safetensors >other/sae_weights.safetensors
refused 1 "other" features list "${m[@]}" --dictionary other
cp -r dict swapped; head -c 300 dict/atlas.esa >swapped/atlas.esa
refused 1 "atlas.esa" features show 1 "${m[@]}" --dictionary swapped
rm swapped/atlas.esa
python3 - <<'PY'
import json
c = json.load(open("dict/cfg.json"))
c["metadata"]["espalier_model_sha256"] = "0" * 64
json.dump(c, open("swapped/cfg.json", "w"))
PY
refused 1 "000000" features list "${m[@]}" --dictionary swapped
refused 1 "there is no dictionary for this model" features list "${m[@]}"

printf '{"feature":1,"text":"one"}\n{"feature":999,"text":"x"}\n' >labels.jsonl
refused 1 "labels.jsonl:2" label import labels.jsonl "${d[@]}"
want 0 label export --json "${d[@]}"
is 'v == []' out || fail "half an import was taken in"

# A workspace that is none; a home that is a file
home=$work/h
mkdir "$home"; printf 'this is no database, this is no database, this is no database' >"$home/workspace.db"
refused 1 "workspace.db" label export "${d[@]}" --home "$home"
[ "$(head -c 15 "$home/workspace.db")" = "this is no data" ] || fail "a foreign file was overwritten"
printf x >"$work/file"; refused 1 "file" label export "${d[@]}" --home "$work/file"

# Output that cannot be written
want 0 basis new b 1 2 "${d[@]}"
refused 1 "none/deep" basis export b none/deep/b.json "${d[@]}"

# bench --against: the other side is not there, is no Python, lacks its packages.
peft() { refused 1 "$1" bench --against peft --python "$2" --model tiny.gguf --dictionary dict --quiet; }
peft "cannot run './no-such-python': No such file or directory; name with --python" ./no-such-python
peft "ended without an answer (exit 1)" false
printf '#!/bin/sh\nexec python3 -I -S "$@"\n' >bare && chmod +x bare
peft "this Python needs: pip install torch transformers peft gguf" ./bare
refused 1 "this Python needs: pip install torch transformers gguf" bench --against torch --python ./bare --model tiny.gguf --quiet
