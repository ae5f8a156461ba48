#!/usr/bin/env bash
# Adapters of two dictionaries, end to end on the tiny model.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
want 0 harvest texts.jsonl --layers 2 --context 64 --out harvest2 --model tiny.gguf --quiet
want 0 train harvest2 --layer 2 --features 96 --k 8 --batch 256 --tokens 8k --out late --quiet
m=(--model tiny.gguf --threads 1)
d=("${m[@]}" --dictionary dict)
both=("${d[@]}" --dictionary late)

want 0 basis new first --suggest pairs.jsonl --size 8 "${d[@]}" --quiet
want 0 basis new second --suggest pairs.jsonl --size 6 "${m[@]}" --dictionary late --quiet
want 0 basis show second "${m[@]}" --dictionary late --json
want 0 label add --feature "$(value 'v["features"][0]["feature"]' out)" --text "late one" "${m[@]}" --dictionary late
want 0 basis export second second.json "${m[@]}" --dictionary late
want 0 eval margin --experiences pairs.jsonl "${d[@]}" --json --quiet
base=$(value 'v["margin"]' out)

# The second dictionary is named, or lies beside the first; in either order of the bases the lower layer comes first
mkdir alone; cp -r dict alone/
refused 1 "name it with a further --dictionary" adapt --basis first --basis second --experiences pairs.jsonl --out x.safetensors "${m[@]}" --dictionary alone/dict
refused 1 "one basis" adapt --basis first --basis first --experiences pairs.jsonl --out x.safetensors "${both[@]}"
for form in bias gain map lora; do
  want 0 adapt --basis second.json --basis first --experiences pairs.jsonl --form $form --steps 3 --out $form.safetensors --force "${both[@]}" --json --quiet
  grep -q '"part"' out || fail "a step does not say of which part a feature is"
  want 0 drift $form.safetensors "${both[@]}" --json --top 0
  is 'len(v["features"]) == 14 and [p["layer"] for p in v["parts"]] == [1, 2] and [p["n"] for p in v["parts"]] == [8, 6]' out || fail "drift does not tell the parts ($form)"
  is 'all(f["layer"] == f["part"] + 1 for f in v["features"]) and any(f["label"] == "late one" and f["layer"] == 2 for f in v["features"])' out || fail "drift does not tell layers and labels ($form)"
  is 'all(abs(math.fsum(f["influence"]) - f["coefficient"]) < 1e-4 + 0.01 * abs(f["coefficient"]) for f in v["features"])' out || fail "influence does not add up ($form)"
  want 0 eval margin --experiences pairs.jsonl --adapter $form.safetensors "${both[@]}" --json --quiet
  is "v['margin'] > $base" out || fail "$form: the margin did not rise"
  want 0 chat --prompt hi --temperature 0 --max-tokens 6 --adapter $form.safetensors "${both[@]}"
done
want 0 drift lora.safetensors "${both[@]}"; plain out
grep -q '^layer 1 of ' out && grep -q '^layer 2 of ' out && grep -q '^L2 .*late one' out || fail "drift's table does not tell the layers"

# found without being named: beside the dictionary in use, or in home
want 0 drift bias.safetensors "${d[@]}" --json
want 0 chat --prompt hi --temperature 0 --max-tokens 6 --adapter lora.safetensors "${m[@]}" --dictionary late
refused 1 "2 dictionaries" drift bias.safetensors "${m[@]}" --dictionary alone/dict
mkdir -p "$HOME/.local/share/espalier/dictionaries"; cp -r late "$HOME/.local/share/espalier/dictionaries/other-name"
want 0 eval margin --experiences pairs.jsonl --adapter bias.safetensors "${m[@]}" --dictionary alone/dict --json --quiet

# a direction of both is a prior for both; and for one
want 0 adapt --basis first --basis second --experiences pairs.jsonl --direction --out terse.safetensors "${both[@]}" --quiet
for b in "--basis first --basis second" "--basis first"; do
  # shellcheck disable=SC2086
  want 0 adapt $b --experiences pairs.jsonl --prior terse.safetensors --steps 2 --out mine.safetensors --force "${both[@]}" --json --quiet
  grep -q '"direction": *"terse.safetensors"' out || fail "adapt --prior does not say how far it went along the direction"
done

for kind in control-vector npz json; do
  want 0 export bias.safetensors --to $kind "exported.$kind" "${both[@]}"
  [ -s "exported.$kind" ] || fail "export --to $kind"
done
is '[p["layer"] for p in v["parts"]] == [1, 2] and v["features"][8]["layer"] == 2 and v["parts"][1]["basis"]["name"] == "second"' exported.json || fail "export --to json"
refused 1 "several dictionaries" eval readable bias.safetensors "${both[@]}"
