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
python3 - <<'PY'
import random, struct
random.seed(2)
head = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 64), }".ljust(117) + "\n"
with open("acts.npy", "wb") as f:
    f.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head.encode() + struct.pack("<64000f", *(random.gauss(0, 1) for _ in range(64000))))
PY
want 0 encode acts.npy --dictionary dict --top 200 --json; cp out cpu-encoded.json
want 0 dictionary stats dict texts.jsonl --tokens 1k --model tiny.gguf --json; cp out cpu-stats.json

want 0 features show 5 --model tiny.gguf --dictionary dict --json; cp out cpu-card.json
ESPALIER_BIN=$ESPALIER_SHIM
want 0 doctor --json --device cuda:0 --model tiny.gguf
is '"compute capability" in [f for f in v["findings"] if f["name"] == "device"][0]["text"]' out || fail "doctor does not tell of the card"
refused 1 "there is no card 1" chat --device cuda:1 --prompt x --model tiny.gguf
want 0 chat --device cuda:0 --prompt "say something" --model tiny.gguf --max-tokens 12 --temperature 0 --exact --json; cp out card.json
[ "$(value 'v["text"]' cpu.json)" = "$(value 'v["text"]' card.json)" ] || fail "another answer on the card than on the processor"

# A dictionary encodes there what is worth the way: the same features, and their values within rounding
want 0 encode acts.npy --dictionary dict --top 200 --json --device cuda:0; cp out card-encoded.json
python3 - <<'PY' || fail "encode on the card differs"
import json
a, b = (json.load(open(f"{x}-encoded.json"))["tokens"] for x in ("cpu", "card"))
assert len(a) == len(b) == 1000 and sum(len(t["features"]) for t in a) > 5000
for x, y in zip(a, b):
    u, v = ({f["index"]: f["activation"] for f in t["features"]} for t in (x, y))
    for f in u.keys() ^ v.keys():
        assert max(u.get(f, 0), v.get(f, 0)) < 1e-3 + min(min(u.values()), min(v.values())), f
    assert all(abs(u[f] - v[f]) < 1e-4 * (1 + u[f]) for f in u.keys() & v.keys())
PY
want 0 dictionary stats dict texts.jsonl --tokens 1k --model tiny.gguf --json --device cuda:0; cp out card-stats.json
for what in fvu l0 dead ce; do
  is "abs(v['$what'] - $(value "v['$what']" cpu-stats.json)) < 1e-3 * (1 + v['$what'])" card-stats.json || fail "dictionary stats on the card: $what"
done
want 0 atlas dict --harvest harvest --model tiny.gguf --quiet --device cuda:0
want 0 features show 5 --model tiny.gguf --dictionary dict --json --device cuda:0
is "abs(v['density'] - $(value "v['density']" cpu-card.json)) < 1e-3 and abs(v['max'] - $(value "v['max']" cpu-card.json)) < 1e-3 * v['max']" out || fail "the atlas of the card"

# What was left to the processor is told in one line, and the answer comes
SHIM_MEMORY_MB=1 want 0 encode acts.npy --dictionary dict --top 200 --json --device cuda:0; cp out small-encoded.json
cmp small-encoded.json cpu-encoded.json || fail "encode without room on the card"
[ "$(grep -c "is encoded on the processor: .*of the card's memory are wanted" err)" -eq 1 ] || { cat err; fail "it was not told that the card had no room"; }
SHIM_LOSE_AFTER=400 want 0 chat --device cuda:0 --prompt "say something" --model tiny.gguf --max-tokens 12 --temperature 0 --exact --json
[ "$(value 'v["text"]' cpu.json)" = "$(value 'v["text"]' out)" ] || fail "another answer when the card was lost"
[ "$(grep -c "was lost .*the processor does from now on" err)" -eq 1 ] || { cat err; fail "it was not told that the card was lost"; }

want 0 bench --device cuda:0 --small --json
is 'len(v["rows"]) == 8 and all(r["rate"] > 0 for r in v["rows"]) and sum("share" in r for r in v["rows"]) == 6' out || fail "bench on the card"
want 0 bench --only card --device cuda:0 --small; plain out

# The same work beside PyTorch's: tiny here, with PyTorch on the processor
printf '#!/bin/sh\nexec python3 -I -S "$@"\n' >bare && chmod +x bare
refused 1 "this Python needs: pip install torch transformers peft" bench --device cuda:0 --small --python ./bare
refused 1 "cannot run './no-such-python'" bench --device cuda:0 --small --python ./no-such-python
if [ -n "${ESPALIER_TEST_PYTHON:-}" ]; then
  want 0 bench --device cuda:0 --small --repeat 1 --python "$ESPALIER_TEST_PYTHON" --json
  is 'len(v["rows"]) == 5 and all(r["ratio"] > 0 and r["ours"]["runs"] == r["theirs"]["runs"] == 1 for r in v["rows"]) and v["versions"]["device"] == "cpu"' out ||
    fail "bench on the card beside PyTorch"
fi

# A card trains recipes without a penalty; asked for another it refuses, and with auto the processor does it
some=(train harvest --layer 1 --features 96 --k 8 --batch 256 --tokens 2k)
for recipe in batchtopk topk matryoshka; do
  want 0 "${some[@]}" --device cuda:0 --recipe $recipe --out on-card-$recipe --f32 --json --quiet
  is "v['recipe'] == '$recipe'" out || fail "train on the card"
done
want 0 dictionary info on-card-matryoshka --json
is '(v["architecture"], v["features"]) == ("jumprelu", 96)' out || fail "what the card trained"
want 0 dictionary info on-card-topk --json
is '(v["architecture"], v["features"]) == ("topk", 96)' out || fail "what the card trained"
refused 1 "the recipe standard needs --device cpu" "${some[@]}" --device cuda:0 --recipe standard --out other
refused 1 "the recipe gated needs --device cpu" "${some[@]}" --device cuda:0 --recipe gated --out other --plan
[ ! -e other ] || fail "a refused training left something"
want 0 "${some[@]}" --device cpu --recipe gated --out on-cpu
want 0 "${some[@]}" --recipe gated --out on-auto
grep -q "the recipe gated is trained on the processor" err || fail "auto does not tell where it trains"
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
