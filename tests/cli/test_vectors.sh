#!/usr/bin/env bash
# Steering vectors that others made, as entries of a basis: basis add --vector, and all that a basis goes through.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
d=(--model tiny.gguf --dictionary dict)
golden=$ESPALIER_TEST_DIR/golden/steering

want 0 basis new tone 3 7 "${d[@]}"
want 0 basis add tone --vector "$golden/persona.pt" "${d[@]}" --json
is 'v["version"] == 2 and len(v["features"]) == 3' out || fail "basis add --vector: $(cat out)"
is 'v["features"][2]["label"] == "persona" and v["features"][2]["vector"]["layer"] == 1' out || fail "its name and layer: $(cat out)"
is 'abs(v["features"][2]["hi"] - v["features"][2]["vector"]["length"]) < 1e-5' out || fail "bounds by its length"
want 0 basis add tone --vector "$golden/control.gguf:3" --as happy --lo -2 --hi 0 9 "${d[@]}" --json
is '[f["label"] for f in v["features"] if "vector" in f] == ["persona", "happy"] and len(v["features"]) == 5' out || fail "a second: $(cat out)"
is '[f["vector"]["layer"] for f in v["features"] if "vector" in f] == [1, 3]' out || fail "the layer asked for"
want 0 basis show tone "${d[@]}"; grep -q "happy  (vector)" out && grep -q "persona  (vector)" out || fail "basis show: $(cat out)"

refused 1 "is zero" basis add tone --vector "$golden/persona.pt:2" "${d[@]}"
refused 1 "embedding and of layers 0 to 3" basis add tone --vector "$golden/persona.pt:99999999999" "${d[@]}"
refused 1 "no direction.0" basis add tone --vector "$golden/control.gguf:0" "${d[@]}"
refused 1 "is no name for a vector" basis add tone --vector "$golden/persona.pt" --as 12 "${d[@]}"
refused 1 "a steering vector is" basis add tone --vector pairs.jsonl "${d[@]}"
refused 2 "neither a feature" basis add tone "${d[@]}"
refused 2 "--vector FILE is missing" basis add tone 4 --as x "${d[@]}"
cp "$golden/persona.pt" "$(printf 'a\033[2J.pt')"; refused 1 "no name for a vector" basis add tone --vector "$(printf 'a\033[2J.pt')" "${d[@]}"

# learned along, shown, and taken elsewhere
want 0 adapt --basis tone --experiences pairs.jsonl --form bias --steps 3 --out a.safetensors "${d[@]}" --quiet
want 0 drift a.safetensors "${d[@]}"; grep -q persona out && grep -q happy out || fail "drift names no vectors: $(cat out)"
want 0 drift a.safetensors "${d[@]}" --json
is 'sorted(f["label"] for f in v["features"] if f["feature"] < 0) == ["happy", "persona"]' out || fail "drift --json: $(cat out)"
want 0 export a.safetensors --to json a.json "${d[@]}"; is '[f["vector"] for f in v["features"] if "vector" in f] == ["persona", "happy"]' a.json || fail "export json"
want 0 export a.safetensors --to control-vector a.gguf "${d[@]}"
want 0 export a.safetensors --to persona a.pt "${d[@]}"
want 0 chat --prompt "say the" --max-tokens 4 --temperature 0 --adapter a.safetensors "${d[@]}"
want 0 basis new all 1 "${d[@]}"
want 0 basis add all --vector a.pt "${d[@]}" --json; is 'len(v["features"]) == 2' out || fail "what was learned is a vector as well"
refused 1 "gain scales what fires" adapt --basis tone --experiences pairs.jsonl --form gain --steps 1 --out g.safetensors "${d[@]}" --quiet
refused 1 "has no encoder" basis export tone sae --to saelens "${d[@]}"
want 0 basis export tone tone.gguf --to control-vector --vector happy --strength 3 "${d[@]}"
refused 1 "no vector 'nope'" basis export tone x.gguf --to control-vector --vector nope "${d[@]}"
want 0 basis export tone tone.npz "${d[@]}"
want 0 basis export tone tone.json "${d[@]}"
want 0 basis export tone tone.safetensors "${d[@]}"
want 0 basis show tone.json "${d[@]}" --json; cp out first
want 0 basis import tone.safetensors --name again --home other "${d[@]}"
want 0 basis show again --home other "${d[@]}" --json
python3 - <<'PY'
import json
a, b = json.load(open("first")), json.load(open("out"))
assert a["features"] == b["features"], (a, b)
PY
want 0 basis remove tone happy 9 "${d[@]}" --json
is '[f["feature"] for f in v["features"]][:2] == [3, 7] and len(v["features"]) == 3' out || fail "basis remove: $(cat out)"
refused 1 "no feature 'happy'" basis remove tone happy "${d[@]}"

# The peer reads what was written: llama.cpp adds the vector where it acts here
if [ -n "${ESPALIER_TEST_PYTHON:-}" ]; then
  "$ESPALIER_TEST_PYTHON" - <<'PY'
import json

import gguf
import numpy as np
r = gguf.GGUFReader("tone.gguf")
t = {x.name: np.array(x.data, dtype=np.float32) for x in r.tensors}
v = np.array(next(f["direction"] for f in json.load(open("tone.json"))["features"] if f.get("vector") == "happy"), dtype=np.float32)
assert list(t) == ["direction.1"] and np.abs(t["direction.1"] - 3 * v).max() < 1e-6
z = np.load("tone.npz")
assert np.abs(z["basis"][3] - v).max() < 1e-7 and z["feature"][3] < 0
PY
fi
