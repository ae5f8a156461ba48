#!/usr/bin/env bash
# docs/olmo.md step by step, on a tiny random model of OLMo 2's shape: fetch, look, harvest, train, evaluate, atlas, label, basis, adapt, chat, export.
doc=$(realpath "$(dirname "$0")/../../docs/olmo.md")
. "$(dirname "$0")/lib.sh"
command -v python3 >/dev/null || { echo "skipped: no python3"; exit 77; }
unset HF_TOKEN SSL_CERT_FILE http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY
export no_proxy='*'
: >ran
step() { # runs espalier and remembers which command it was
  case $1 in dictionary | label | basis | features | eval) printf '%s %s\n' "$1" "$2" ;; *) printf '%s\n' "$1" ;; esac >>ran
  want 0 "$@"
}

# 1. The model, from a hub
mkdir -p hub/owner/OLMo-2-tiny-GGUF/resolve/main
"$ESPALIER_MAKE_TINY" hub/owner/OLMo-2-tiny-GGUF/resolve/main/olmo.gguf olmo2
python3 - hub >port 2>/dev/null <<'PY' &
import functools, http.server, sys
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1]))
print(s.server_address[1], flush=True)
s.serve_forever()
PY
server=$!
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 100); do [ -s port ] && break; sleep 0.1; done
HF_ENDPOINT=http://127.0.0.1:$(cat port)/ step fetch hf:owner/OLMo-2-tiny-GGUF/olmo.gguf
model=$(cat out)
cmp "$model" hub/owner/OLMo-2-tiny-GGUF/resolve/main/olmo.gguf || fail "not the model"
m=(--model "$model")

step doctor "${m[@]}" --json
is '[f for f in v["findings"] if f["name"] == "template" and "OLMo 2" in f["text"]]' out || fail "the template is not OLMo 2's"
is '[f for f in v["findings"] if f["name"] == "model" and "olmo2" in f["text"]]' out || fail "doctor does not name the architecture"
step chat --prompt "Hello" --temperature 0 --max-tokens 8 "${m[@]}" --json
cp out plain-reply

# 2. Text: documents, and the model's own answers
tiny_dictionary >/dev/null 2>&1 # for its texts.jsonl and pairs.jsonl; its dictionary is the llama's
rm -rf dict harvest
for i in 1 2 3; do printf '{"text":"Say the number %d."}\n' $i; done >prompts.jsonl
step answer prompts.jsonl --out answers.jsonl --max-tokens 8 "${m[@]}" --quiet
[ "$(wc -l <answers.jsonl)" -eq 3 ] || fail "answers"

# 3. to 6. Harvest, train, what it is worth, atlas
step harvest texts.jsonl answers.jsonl --layers 1 --context 64 --out harvest "${m[@]}" --quiet
step train harvest --layer 1 --features 128 --k 8 --batch 256 --tokens 8k --out dict --quiet
d=("${m[@]}" --dictionary dict)
step dictionary stats dict texts.jsonl --tokens 500 "${m[@]}" --json --quiet
is '0 < v["fvu"] < 1 and v["ce"] > 0 and v["recovered"] > 0' out || fail "dictionary stats"
step dictionary evaluate dict texts.jsonl --tokens 500 --parts stats,cosines,probes,absorption "${m[@]}" --json --quiet
is 'v["cosines"]["features"] == 128 and "skipped" in v["absorption"] and v["dictionary"]["layer"] == 1' out || fail "dictionary evaluate"
step dictionary info dict --json; is 'v["features"] == 128 and v["d"] == 64' out || fail "dictionary info"
step atlas dict --harvest harvest "${m[@]}" --quiet
refused 1 "was made from the model" features list --dictionary dict --model tiny.gguf # another model of the same width

# 7. Look and label
step features list "${d[@]}" --sort density --limit 1 --json
feature=$(value 'v[0]["feature"]' out)
step features show "$feature" "${d[@]}" --json
is 'len(v["examples"]) > 0 and len(v["promoted"]) > 0' out || fail "features show"
step features for-text "the same world" "${d[@]}" --json --top 4; is 'len(v) > 0' out || fail "for-text"
step label add --feature "$feature" --text "common words" "${d[@]}" --json
step label export "${d[@]}" --json; is '[l["text"] for l in v] == ["common words"]' out || fail "label export"

# 8., 9. Basis, adapter
step basis new brief --suggest pairs.jsonl --size 16 "${d[@]}" --json --quiet
is 'len(v["features"]) == 16' out || fail "basis new"
step eval margin --experiences pairs.jsonl "${d[@]}" --json --quiet
before=$(value 'v["margin"]' out)
step adapt --basis brief --experiences pairs.jsonl --steps 3 --out brief.safetensors --force "${d[@]}" --json --quiet
step drift brief.safetensors "${d[@]}" --json; is 'len(v["features"]) > 0 and any(f["coefficient"] != 0 for f in v["features"])' out || fail "drift"
step eval margin --experiences pairs.jsonl --adapter brief.safetensors "${d[@]}" --json --quiet
is "v['margin'] > $before" out || fail "the margin did not rise"

# 10. Chat with it, and take it elsewhere
step chat --prompt "Hello" --temperature 0 --max-tokens 8 --adapter brief.safetensors "${d[@]}" --json
is 'v["tokens"] >= 1' out || fail "chat with the adapter"
want 0 chat --prompt "Hello" --temperature 0 --max-tokens 8 "${m[@]}" --json # without it the model is what it was
[ "$(value 'v["ids"]' out)" = "$(value 'v["ids"]' plain-reply)" ] || fail "the model changed"
step export brief.safetensors --to control-vector brief.gguf "${d[@]}"
[ -s brief.gguf ] || fail "export"
for to in peft gguf-lora; do refused 1 "a norm follows the matrices" export brief.safetensors --to $to lora-$to "${d[@]}"; [ ! -e lora-$to ] || fail "a refused export left $to"; done

# Every command that the document shows was run here
grep -oE '^    espalier [a-z]+( [a-z-]+)?' "$doc" | sed 's/^    espalier //' | while read -r a b; do
  case $a in dictionary | label | basis | features | eval) a="$a $b" ;; esac
  grep -qx -- "$a" ran || { echo "docs/olmo.md shows 'espalier $a', which was not run" >&2; exit 1; }
done || fail "the document and this test differ"
[ "$(grep -c '^    espalier ' "$doc")" -ge 15 ] || fail "the document does not show its commands"
