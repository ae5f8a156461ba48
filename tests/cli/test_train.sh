#!/usr/bin/env bash
# Dictionaries of every recipe of train, from a harvest: what they say of themselves, and, where ESPALIER_TEST_PYTHON names a Python with sae-lens and numpy, that
# SAELens opens each and finds the same activations.
. "$(dirname "$0")/lib.sh"
tiny_dictionary

python3 - <<'PY'
import math, struct
rows, cols = 40, 64
head = "{'descr': '<f4', 'fortran_order': False, 'shape': (%d, %d), }" % (rows, cols)
head += " " * (63 - (10 + len(head)) % 64) + "\n"
x = [2 * math.sin(0.37 * i + 0.0011 * i * i) for i in range(rows * cols)]
open("x.npy", "wb").write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + struct.pack("<%df" % len(x), *x))
PY
for recipe in batchtopk topk matryoshka jumprelu gated standard; do
  case $recipe in topk | gated | standard) saved=$recipe ;; *) saved=jumprelu ;; esac
  want 0 train harvest --layer 1 --features 96 --k 8 --batch 256 --tokens 20k --recipe $recipe --f32 --out trained-$recipe --json --quiet
  is "v['recipe'] == '$recipe' and v['dictionaries'][0]['layer'] == 1" out || fail "$recipe"
  want 0 dictionary info trained-$recipe --json
  is "(v['architecture'], v['features'], v['layer'], v['apply_b_dec_to_input']) == ('$saved', 96, 1, True)" out || fail "$recipe saved as"
  want 0 encode x.npy --dictionary trained-$recipe --top 96 --json
  mv out acts-$recipe.json
  is 'len(v["tokens"]) == 40 and any(t["features"] for t in v["tokens"])' acts-$recipe.json || fail "$recipe: no activations"
done

# from texts in one go, without a harvest: planned, trained, refused
s=(train texts.jsonl --stream --layers 1,2 --site resid,mlp --features 96 --k 8 --batch 256 --context 64 --buffer 2k --model tiny.gguf --quiet)
want 0 "${s[@]}" --tokens 20k --out streamed --plan --json
is 'v["layers"] == 4 and v["memory"] > 0 and v["disk"] > 0 and v["disk_harvest"] == 0 and v["seconds"] > 0' out || fail "plan of a stream"
[ ! -e streamed ] || fail "a plan leaves something"
want 0 "${s[@]}" --tokens 20k --out streamed --json
is '[d["dictionary"] for d in v["dictionaries"]] == ["streamed/layer-01", "streamed/layer-01-mlp_out", "streamed/layer-02", "streamed/layer-02-mlp_out"]' out || fail "streamed"
[ "$(ls streamed | tr '\n' ' ')" = "layer-01 layer-01-mlp_out layer-02 layer-02-mlp_out " ] || fail "a stream leaves $(ls streamed)"
want 0 dictionary stats streamed/layer-02-mlp_out texts.jsonl --tokens 2k --model tiny.gguf --json --quiet
is '0 < v["fvu"] < 0.6' out || fail "streamed: FVU $(value 'v["fvu"]' out)"
refused 1 "all its dictionaries are finished" "${s[@]}" --tokens 20k --out streamed
refused 1 "two batches" "${s[@]}" --buffer 300 --out other
want 2 train harvest --stream --layer 1 --out other
want 2 train texts.jsonl --buffer 2k --layer 1 --out other

[ -n "${ESPALIER_TEST_PYTHON:-}" ] && "$ESPALIER_TEST_PYTHON" -c 'import sae_lens, numpy' 2>/dev/null || { echo "sae-lens is not here: it was not asked"; exit 0; }
"$ESPALIER_TEST_PYTHON" - <<'PY' || fail "SAELens finds others"
import json, numpy, torch
from sae_lens import SAE
x = torch.from_numpy(numpy.load("x.npy"))
for recipe in ("batchtopk", "topk", "matryoshka", "jumprelu", "gated", "standard"):
    sae = SAE.load_from_disk("trained-" + recipe)
    want = sae.encode(x).detach()
    want = (want.to_dense() if want.is_sparse else want).numpy()
    got = numpy.zeros_like(want)
    for t, row in enumerate(json.load(open(f"acts-{recipe}.json"))["tokens"]):
        for f in row["features"]:
            got[t, f["index"]] = f["activation"]
    away = abs(got - want).max() / want.max()
    print(f"{recipe}: {type(sae).__name__}, {(want > 0).sum() / len(want):.1f} active, largest difference {away:.1e} of the largest activation")
    assert want.max() > 0 and away < 1e-4, recipe
PY
