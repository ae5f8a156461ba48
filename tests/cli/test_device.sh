#!/usr/bin/env bash
# --device: what is refused, what falls back, and the program on the shim's card beside the same on the processor.
. "$(dirname "$0")/lib.sh"
tiny

refused 1 "--device wants auto, cpu, cuda or cuda:N" chat --device gpu --prompt x --model tiny.gguf
refused 1 "--device cuda:7" chat --device cuda:7 --prompt x --model tiny.gguf # no machine of these tests has eight cards
want 0 chat --device cpu --prompt x --model tiny.gguf --max-tokens 2
want 0 chat --prompt x --model tiny.gguf --max-tokens 2 # auto
mkdir -p "$HOME/.config/espalier"
echo "device = cpu" >"$HOME/.config/espalier/config.ini"
want 0 doctor --json --model tiny.gguf
is '[f for f in v["findings"] if f["name"] == "device"][0]["text"].startswith("the processor, as")' out || fail "device in config.ini"
echo "device = gpu" >"$HOME/.config/espalier/config.ini"
refused 1 "'gpu' is no value for device" chat --prompt x --model tiny.gguf
rm "$HOME/.config/espalier/config.ini"

[ -x "${ESPALIER_SHIM:-}" ] || { echo "the program on the shim was not built: the rest is left out"; exit 0; }
tiny_dictionary
want 0 chat --prompt "say something" --model tiny.gguf --max-tokens 12 --temperature 0 --exact --json; cp out cpu.json
ESPALIER_BIN=$ESPALIER_SHIM
want 0 doctor --json --device cuda:0 --model tiny.gguf
is '"compute capability" in [f for f in v["findings"] if f["name"] == "device"][0]["text"]' out || fail "doctor does not tell of the card"
refused 1 "there is no card 1" chat --device cuda:1 --prompt x --model tiny.gguf
want 0 chat --device cuda:0 --prompt "say something" --model tiny.gguf --max-tokens 12 --temperature 0 --exact --json; cp out card.json
[ "$(value 'v["text"]' cpu.json)" = "$(value 'v["text"]' card.json)" ] || fail "another answer on the card than on the processor"
want 0 bench --device cuda:0 --small --json
is 'len(v["rows"]) == 7 and all(r["rate"] > 0 for r in v["rows"]) and sum("share" in r for r in v["rows"]) == 5' out || fail "bench on the card"
want 0 bench --only card --device cuda:0 --small; plain out

# A card trains batchtopk; asked for another recipe it refuses, and with auto the processor does it
some=(train harvest --layer 1 --features 96 --k 8 --batch 256 --tokens 2k)
want 0 "${some[@]}" --device cuda:0 --out on-card --f32 --json --quiet
is 'v["recipe"] == "batchtopk"' out || fail "train on the card"
want 0 dictionary info on-card --json
is '(v["architecture"], v["features"]) == ("jumprelu", 96)' out || fail "what the card trained"
refused 1 "the recipe topk needs --device cpu" "${some[@]}" --device cuda:0 --recipe topk --out other
refused 1 "the recipe gated needs --device cpu" "${some[@]}" --device cuda:0 --recipe gated --out other --plan
[ ! -e other ] || fail "a refused training left something"
want 0 "${some[@]}" --device cpu --recipe topk --out on-cpu
want 0 "${some[@]}" --recipe topk --out on-auto
grep -q "the recipe topk is trained on the processor" err || fail "auto does not tell where it trains"
cmp on-cpu/sae_weights.safetensors on-auto/sae_weights.safetensors || fail "auto trained something else"

# From a stream the card loads a batch ahead: it must be the batch that the processor learns from next
stream=(train texts.jsonl --stream --layer 1 --features 96 --k 8 --batch 256 --context 64 --buffer 1k --tokens 6k --model tiny.gguf --f32 --quiet)
want 0 "${stream[@]}" --device cpu --out stream-cpu
want 0 "${stream[@]}" --device cuda:0 --out stream-card
python3 - <<'PY' || fail "a stream is learned otherwise on the card"
import json, struct
def rows(folder):
    b = open(folder + "/sae_weights.safetensors", "rb").read()
    n, = struct.unpack("<Q", b[:8])
    t = json.loads(b[8:8 + n])["W_dec"]
    x = struct.unpack("<%df" % (t["shape"][0] * t["shape"][1]), b[8 + n + t["data_offsets"][0]:8 + n + t["data_offsets"][1]])
    return [x[i:i + t["shape"][1]] for i in range(0, len(x), t["shape"][1])]
cosine = [sum(p * q for p, q in zip(a, b)) for a, b in zip(rows("stream-cpu"), rows("stream-card"))]
assert len(cosine) == 96 and min(cosine) > 0.99, min(cosine)
PY
