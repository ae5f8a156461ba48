#!/usr/bin/env bash
# Dictionaries of attention's and the MLP's output, from harvest to features of a text; with ESPALIER_TEST_PYTHON (sae-lens) SAELens opens them.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
m=(--model tiny.gguf --quiet)

want 0 harvest texts.jsonl --layers 1,2 --site resid,attn,mlp,z --context 64 --out all "${m[@]}" --json
is 'v["sites"] == ["resid_post", "attn_out", "mlp_out", "z"] and v["layers"] == [1, 2] and v["d_z"] == 64' out || fail "harvest.json"
cmp all/layer-01/shard-0000.f16 harvest/layer-01/shard-0000.f16 || fail "the residual is not what a harvest of it alone has"
[ -f all/layer-02-attn_out/shard-0000.f16 ] && [ -f all/layer-01-mlp_out/shard-0000.f16 ] || fail "no shards: $(ls all)"
refused 1 '"sites"' harvest texts.jsonl --layers 1,2 --context 64 --out all "${m[@]}"
want 2 harvest texts.jsonl --layers 1 --site mlp,mlp --out other "${m[@]}"
want 2 harvest texts.jsonl --layers 1 --site mlp_in --out other "${m[@]}"
want 2 train all --layer 1 --site attn,mlp --out other
want 2 train all --layer 1 --site elsewhere --out other
refused 1 "layer-01-mlp_out" train harvest --layer 1 --site mlp --features 96 --k 8 --out other

small=(--features 96 --k 8 --batch 256 --tokens 20k)
want 0 train all --layers 1-2 --site attn,mlp "${small[@]}" --out many --json --quiet
is '[(d["layer"], d["site"], d["dictionary"]) for d in v["dictionaries"]] == [(l, s, "many/layer-%02d-%s" % (l, s)) for l in (1, 2) for s in ("attn_out", "mlp_out")]' out || fail "what was trained"
want 0 train all --layer 2 --site z "${small[@]}" --recipe topk --f32 --out heads --quiet
for pair in many/layer-01-attn_out:blocks.1.hook_attn_out many/layer-02-mlp_out:blocks.2.hook_mlp_out heads:blocks.2.attn.hook_z; do
  d=${pair%%:*} hook=${pair##*:}
  want 0 dictionary info "$d" --json
  is "v['hook'] == '$hook'" out || fail "$d says $(value 'v["hook"]' out)"
  want 0 atlas "$d" --harvest all "${m[@]}"
  want 0 dictionary stats "$d" texts.jsonl --tokens 2k "${m[@]}" --json
  case $d in
  *mlp_out) is '0 < v["fvu"] < 1 and v["ce"] > 0 and v["recovered"] < 1' out || fail "$d: stats" ;;
  *) is '0 < v["fvu"] < 1 and v["ce"] is None and v["recovered"] is None' out || fail "$d: stats" ;;
  esac
  want 0 features for-text "they like new work and old people" --dictionary "$d" "${m[@]}" --json
  is "len(v) > 3" out || fail "$d: nothing fires"
  feature=$(value 'v[0]["feature"]' out)
  want 0 features show "$feature" --dictionary "$d" "${m[@]}" --json
  is 'v["density"] > 0 and v["promoted"] and v["examples"] and v["neurons"]' out || fail "$d: dashboard"
  echo "they like new work and old people" >some.txt
  want 0 encode some.txt --dictionary "$d" "${m[@]}" --json
  is 'any(t["features"] for t in v["tokens"])' out || fail "$d: encode"
  refused 1 "it is for looking" basis new mine 3 4 --dictionary "$d" "${m[@]}"
  refused 1 "it is for looking" adapt --basis mine --experiences pairs.jsonl --out a.safetensors --dictionary "$d" "${m[@]}"
done
want 0 dictionary evaluate many/layer-01-mlp_out texts.jsonl --parts stats,cosines,steering --tokens 1k "${m[@]}" --json
is '"for looking" in v["steering"]["skipped"]' out || fail "steering is not left out"

[ -n "${ESPALIER_TEST_PYTHON:-}" ] && "$ESPALIER_TEST_PYTHON" -c 'import sae_lens' 2>/dev/null || { echo "sae-lens is not here: it was not asked"; exit 0; }
"$ESPALIER_TEST_PYTHON" - <<'PY' || fail "SAELens does not open them"
from sae_lens import SAE
for folder, hook in (("many/layer-01-attn_out", "blocks.1.hook_attn_out"), ("many/layer-02-mlp_out", "blocks.2.hook_mlp_out"), ("heads", "blocks.2.attn.hook_z")):
    sae = SAE.load_from_disk(folder)
    assert sae.cfg.metadata.hook_name == hook, (folder, sae.cfg.metadata.hook_name)
PY
