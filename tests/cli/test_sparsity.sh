#!/usr/bin/env bash
# SAELens' sparsity.safetensors: written where densities are known, believed where there is no atlas.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
m=(--model tiny.gguf)

want 0 features list --limit 0 --json "${m[@]}" --dictionary dict; cp out with-atlas
want 0 dictionary convert dict saelens --to saelens
[ -f saelens/sparsity.safetensors ] || fail "no sparsity.safetensors beside the converted dictionary"
[ ! -e saelens/atlas.esa ] || fail "an atlas in the converted folder"
want 0 features list --limit 0 --json "${m[@]}" --dictionary saelens
cat >check.py <<'PY'
import json, math, struct, sys
b = open(sys.argv[1] + "/sparsity.safetensors", "rb").read()
n, = struct.unpack("<Q", b[:8])
h = json.loads(b[8:8 + n])["sparsity"]
x = struct.unpack("<%df" % h["shape"][0], b[8 + n + h["data_offsets"][0]:8 + n + h["data_offsets"][1]])
want = [f["density"] for f in json.load(open("with-atlas"))]
if len(sys.argv) > 2:
    want = [want[int(i)] for i in sys.argv[2:]]
assert h["dtype"] == "F32" and len(x) == len(want)
assert all(abs(a - math.log10(d + 1e-10)) < 1e-5 for a, d in zip(x, want))
if len(sys.argv) == 2:
    got = json.load(open("out"))
    assert all(abs(g["density"] - w) < 1e-5 * w + 1e-9 for g, w in zip(got, want)) and all(g["max"] is None for g in got)
PY
python3 check.py saelens || fail "its numbers"
want 0 features list --sort density --limit 3 --json "${m[@]}" --dictionary saelens
is '[f["density"] for f in v] == sorted([f["density"] for f in v], reverse=True)' out || fail "--sort density: $(cat out)"
refused 1 "there is no atlas" features list --sort max "${m[@]}" --dictionary saelens
want 0 features search "density<0.02" --limit 100000 --json "${m[@]}" --dictionary saelens; n=$(value 'len(v)' out)
is "len([f for f in v if f['density'] < 0.02]) == $n" with-atlas || fail "density<0.02 finds $n"
want 0 dictionary convert saelens again --to saelens; cmp saelens/sparsity.safetensors again/sparsity.safetensors || fail "not carried along to the bit"
want 0 dictionary convert dict gemma --to gemma-scope; [ ! -e gemma/sparsity.safetensors ] || fail "another format has no such file"
want 0 basis new b 7 2 50 "${m[@]}" --dictionary dict
want 0 basis export b cut --to saelens "${m[@]}" --dictionary dict
python3 check.py cut 7 2 50 || fail "of chosen features"
# one that makes no sense does not keep the dictionary from being opened
printf 'xx' >again/sparsity.safetensors
want 0 features list --limit 1 --json "${m[@]}" --dictionary again; is 'v[0]["density"] is None' out || fail "a bad file: $(cat out)"
