#!/usr/bin/env bash
# Dictionary to drift, end to end on the tiny model: labels, bases, adapters, evaluation.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
d=(--model tiny.gguf --dictionary dict)

want 0 dictionary info dict --json
is 'v["features"] == 96' out || fail "dictionary info"
mkdir -p "$HOME/.local/share/espalier/dictionaries"; cp -r dict "$HOME/.local/share/espalier/dictionaries/tiny"
want 0 features list --model tiny.gguf --json --limit 3 # found by the model's hash
is 'len(v) == 3' out || fail "features list"
want 0 dictionary stats dict texts.jsonl --tokens 500 --model tiny.gguf --json --quiet
is '0 <= v["dead"] <= 1 and v["l0"] >= 0 and v["ce"] > 0' out || fail "dictionary stats"

want 0 encode texts.jsonl "${d[@]}" --top 2 --json
is 'len(v["tokens"]) > 100 and max(len(t["features"]) for t in v["tokens"]) <= 2' out || fail "encode"
want 0 features for-text "the same world" "${d[@]}" --json --top 4
is 'len(v) <= 4' out || fail "for-text"
want 0 features for-text "the same world" "${d[@]}" --json --sort token
is '[a["position"] for a in v] == sorted(a["position"] for a in v) and all(a["times"] > 0 for a in v)' out || fail "for-text --sort token"
refused 2 "max, token or surprise" features for-text "the same world" "${d[@]}" --sort size
printf 'the old house\nthe old school\n' >a.txt; printf 'you and me\nyou and us\n' >b.txt
want 0 features contrast a.txt b.txt "${d[@]}" --json --top 4 --quiet
is 'len(v) <= 8' out || fail "contrast"
want 0 features list "${d[@]}" --sort density --limit 1 --json
feature=$(value 'v[0]["feature"]' out) half=$(value 'v[0]["density"] / 2' out)
want 0 features show "$feature" "${d[@]}" --json
is 'len(v["examples"]) > 0 and len(v["histogram"]) == 50 and len(v["promoted"]) > 0' out || fail "features show"
is 'len(v["intervals"]) == 5 and abs(sum(i["share"] for i in v["intervals"]) - 1) < 1e-6' out || fail "features show: intervals"
is 'all(i["from"] * 0.99 <= e["values"][e["peak"]] <= i["to"] * 1.01 for i in v["intervals"] for e in i["examples"])' out || fail "features show: places from intervals"
is 'len(v["neurons"]) == 10 and sum(v["logits"]["histogram"]) > 300 and all(c["pearson"] <= 1 for c in v["correlated"])' out || fail "features show: neurons, logits, correlated"
want 0 features show "$feature" "${d[@]}"; plain out
# Filters: of what the atlas knows, of directions, of a text
want 0 features list "density>$half" "${d[@]}" --json --limit 0 --sort density
is 'len(v) > 0 and all(f["density"] > v[0]["density"] * 0.499 for f in v) and len(v) < 96 and v == sorted(v, key=lambda f: -f["density"])' out || fail "features list density>"
want 0 features list "like:$feature" "${d[@]}" --json --limit 8; cp out like
want 0 features show "$feature" "${d[@]}" --json
python3 -c 'import json; a = [f["feature"] for f in json.load(open("like"))]; b = [f["feature"] for f in json.load(open("out"))["neighbours"]]; assert a == b[:8], (a, b)' || fail "like: is not the neighbours"
want 0 features search text:"the same world" is:unlabelled "${d[@]}" --json --sort surprise
is '[f["surprise"] for f in v] == sorted((f["surprise"] for f in v), reverse=True) and len(v) > 0' out || fail "features search text:"
refused 1 "not a number" features list 'density<' "${d[@]}"
refused 2 "--sort is" features list --sort size "${d[@]}"
want 0 dictionary map dict --json --quiet; cp out map1
is 'len(v["points"]) == 96 and all(math.isfinite(x) for p in v["points"] for x in p)' out || fail "dictionary map"
want 0 dictionary map dict --json --quiet; cmp -s out map1 || fail "a map that is kept is another one"
want 0 dictionary map dict --json --quiet --again --threads 1; cmp -s out map1 || fail "a map made again is another one"
want 0 dictionary map dict --json --quiet --seed 5; cmp -s out map1 && fail "the seed does nothing"

# Labels: add, find, undo, export, import
want 0 label add --feature 5 --text "polite words" --tags "tone good" --author ann "${d[@]}" --json
is '(v["text"], v["author"]) == ("polite words", "ann")' out || fail "label add"
want 0 label add --feature 5 --text "something else" "${d[@]}"
want 0 label undo "${d[@]}" --json; is 'v["feature"] == 5' out || fail "label undo"
want 0 features search polit "${d[@]}" --json; is 'v[0]["feature"] == 5' out || fail "search by a beginning"
for q in '"' "'" '*' 'a OR' 'NEAR(' '^x' 'col:y' '()' 'AND'; do want 0 features search "$q" "${d[@]}" --json; done
want 0 label add --feature 6 --text "$(printf 'evil \033]52;c;x\007 label')" "${d[@]}"
want 0 features list --labelled "${d[@]}"; plain out
want 0 label export "${d[@]}"; cp out labels.jsonl
[ "$(wc -l <labels.jsonl)" -eq 2 ] || fail "label export"
want 0 label import labels.jsonl "${d[@]}" --home "$work/second" --json; is 'v["imported"] == 2' out || fail "label import"
want 0 label export "${d[@]}" --home "$work/second" --json
is '[(l["text"], l["author"]) for l in v if l["feature"] == 5] == [("polite words", "ann")]' out || fail "an imported label lost its text or author"

# Bases: versions, bounds, export
want 0 basis new brief --suggest pairs.jsonl --size 8 "${d[@]}" --json --quiet
is 'len(v["features"]) == 8 and v["version"] == 1 and v["energy"]["basis"] > v["energy"]["random_mean"]' out || fail "basis new --suggest"
extra=$(value '[f for f in range(96) if f not in [x["feature"] for x in v["features"]]][0]' out)
want 0 basis add brief "$extra" --lo 0 "${d[@]}" --json
is 'v["version"] == 2 and v["features"][-1]["lo"] == 0' out || fail "basis add"
want 0 basis remove brief "$extra" "${d[@]}" --json; is 'v["version"] == 3 and len(v["features"]) == 8' out || fail "basis remove"
want 0 basis show brief@1 "${d[@]}" --json; is 'v["version"] == 1' out || fail "basis show NAME@VERSION"
want 0 basis list --json; is 'v[0]["name"] == "brief"' out || fail "basis list"
want 0 basis export brief brief.json "${d[@]}"
want 0 basis show brief.json "${d[@]}"; plain out
refused 1 "nope" basis show nope "${d[@]}"
refused 1 "not in the basis" basis remove brief "$extra" "${d[@]}"

# Adapt, each form: influence adds up to the coefficients, the margin rises
want 0 eval margin --experiences pairs.jsonl "${d[@]}" --json --quiet
base=$(value 'v["margin"]' out)
for form in bias gain map lora adam; do
  case $form in adam) as=(--form lora --adam) ;; *) as=(--form $form) ;; esac
  want 0 adapt --basis brief --experiences pairs.jsonl "${as[@]}" --steps 3 --out $form.safetensors --force "${d[@]}" --json --quiet
  steps=$(grep -c '^{"step"' out)
  [ "$steps" -ge 1 ] && [ "$steps" -le 3 ] || fail "adapt --json prints a line a step"
  while read -r line; do printf '%s' "$line" >one; is 'v' one || fail "a line of adapt --json"; done <out
  is '"passed" in v["gate"]' one || fail "no verdict"
  want 0 drift $form.safetensors "${d[@]}" --json --top 0
  is 'len(v["features"]) == 8 and all(abs(math.fsum(f["influence"]) - f["coefficient"]) < 1e-4 + 0.01 * abs(f["coefficient"]) for f in v["features"])' out ||
    fail "influence does not add up to the coefficients ($form)"
  want 0 eval margin --experiences pairs.jsonl --adapter $form.safetensors "${d[@]}" --json --quiet
  is "v['margin'] > $base" out || fail "$form: the margin did not rise"
  want 0 eval neutral --text texts.jsonl --limit 3 --adapter $form.safetensors "${d[@]}" --json --quiet
  is 'v["kl"] > -1e-4 and v["tokens"] > 50' out || fail "eval neutral"
  want 0 score a.txt --adapter $form.safetensors "${d[@]}" --json
  want 0 chat --prompt hi --temperature 0 --max-tokens 6 --adapter $form.safetensors "${d[@]}"
done
for kind in control-vector npz json; do
  want 0 export bias.safetensors --to $kind "exported.$kind" "${d[@]}"
  [ -s "exported.$kind" ] || fail "export --to $kind"
done
[ "$(head -c 4 exported.control-vector)" = GGUF ] || fail "a control vector is a GGUF file"
is 'len(v) > 0' exported.json || fail "export --to json"
# A direction from all pairs, then a few experiences along it: told by name, and swapped ones against it are left out with the reason
want 0 adapt --basis brief --experiences pairs.jsonl --direction --out terse.safetensors "${d[@]}" --quiet
python3 - <<'EOF'
import json
lines = [json.loads(l) for l in open("pairs.jsonl")]
with open("mixed.jsonl", "w") as f:
    for i, v in enumerate(lines[:3]):
        if i == 1:
            v["preferred"], v["rejected"] = v["rejected"], v["preferred"]
        print(json.dumps(v), file=f)
EOF
want 0 adapt --basis brief --experiences mixed.jsonl --prior terse.safetensors --one-sided --steps 2 --out mine.safetensors --force "${d[@]}" --json --quiet
grep -q '"direction": *"terse.safetensors"' out || fail "adapt --prior does not say how far it went along the direction"
[ "$(grep -c '"experience"' out)" -eq 3 ] || fail "adapt says nothing of its experiences"
refused 2 "white inputs" adapt --adam --basis brief --experiences pairs.jsonl --prior terse.safetensors --out x.safetensors "${d[@]}"
refused 1 "without fixed inputs" adapt --basis brief@1 --experiences pairs.jsonl --prior bias.safetensors --out x.safetensors "${d[@]}"
want 0 adapt --unconstrained --experiences pairs.jsonl --steps 2 --out plain.safetensors --force "${d[@]}" --quiet
refused 1 "not constrained" drift plain.safetensors "${d[@]}"
refused 1 "base model is in use" drift "${d[@]}"

# bench: decoding while a learner steps
want 0 bench --only learning --repeat 1 "${d[@]}" --json --quiet
is 'all(v[k]["median"] > 0 for k in ("speech", "speech_learning", "speech_share", "speech_wait"))' out || fail "bench --only learning"

# Another dictionary's adapter and basis are refused
want 0 train harvest --layer 1 --features 96 --k 8 --batch 256 --tokens 8k --seed 9 --out dict2 --quiet
refused 1 "dictionary" drift bias.safetensors --model tiny.gguf --dictionary dict2
refused 1 "dictionary" basis show brief.json --model tiny.gguf --dictionary dict2

# Several layers, of texts, in one go; a plan first; killed with nothing said, it goes on
want 0 train harvest --layer 1 --features 96 --k 8 --recipe jumprelu --out plan --plan --json --quiet
is 'v["memory"] > 1e5 and v["disk"] > 0 and v["seconds"] > 0' out || fail "the plan"
[ ! -e plan ] || fail "a plan wrote something"
python3 -c 'import json
for i in range(400): print(json.dumps({"text": f"Line {i} of a text that says little, {i * i} times over."}))' >many.jsonl
several=(train many.jsonl --layers 0,1 --features 96 --k 8 --batch 256 --tokens 60k --recipe matryoshka --checkpoint 0.02 --out several --model tiny.gguf --quiet)
for delay in 0.2 0.5 1; do timeout -s KILL $delay "$ESPALIER_BIN" "${several[@]}" >/dev/null 2>&1 || true; done
[ -e several/layer-01/sae_weights.safetensors ] || want 0 "${several[@]}"
mkdir -p several/layer-01/checkpoint; : >several/layer-01/checkpoint/state.safetensors.tmp-1 # what a kill can leave behind
refused 1 "all its dictionaries are finished" "${several[@]}"
for l in 0 1; do
  want 0 dictionary info several/layer-0$l --json
  is "v['layer'] == $l and v['features'] == 96 and v['architecture'] == 'jumprelu'" out || fail "layer $l of several"
  [ ! -e several/layer-0$l/checkpoint ] || fail "a checkpoint was left behind"
done
refused 2 "is no recipe" train harvest --layer 1 --recipe sparse --out x
refused 2 "--prefixes is for" train harvest --layer 1 --prefixes 10,96 --out x
refused 1 "prefixes must rise" train harvest --layer 1 --features 96 --k 8 --recipe matryoshka --prefixes 10,50 --out x
refused 1 "needs" train harvest --layer 1 --features 96 --k 8 --memory 1M --out x

# Killed while it learns or imports: no half adapter, and the workspace is sound
for delay in 0.02 0.1 0.3; do
  timeout -s KILL $delay "$ESPALIER_BIN" adapt --basis brief --experiences pairs.jsonl --rate 1e-9 --steps 100000 --out killed.safetensors "${d[@]}" >/dev/null 2>&1 || true
  [ ! -e killed.safetensors ] || fail "a killed adapt left an adapter"
  timeout -s KILL $delay "$ESPALIER_BIN" label import labels.jsonl "${d[@]}" >/dev/null 2>&1 || true
done
want 0 doctor "${d[@]}" --json
is 'v["ok"]' out || { fail "doctor finds something ill after kills"; }
want 0 label export --json "${d[@]}"; is 'len(v) == 2' out || fail "labels were lost"
