#!/usr/bin/env bash
# Labels and dashboards in Neuronpedia's layout: out and in again the same, and what strangers' files hold.
. "$(dirname "$0")/lib.sh"
command -v python3 >/dev/null || { echo "skipped: no python3"; exit 77; }
tiny_dictionary
d=(--model tiny.gguf --dictionary dict)

cat >own.jsonl <<'X'
{"feature":1,"text":"apologies \"quoted\" na\u00efve \ud83e\udd80","tags":["tone","politeness"],"author":"ann","rating":4}
{"feature":2,"text":"auto","tags":[],"author":"auto:some-model","rating":0}
{"feature":95,"text":"the last one","tags":["x"],"author":"bob","rating":0}
{"feature":50,"text":"","tags":["only-a-tag"],"author":"bob","rating":0}
X
want 0 label import own.jsonl "${d[@]}"
want 0 label export --json "${d[@]}"; cp out first
want 0 label export --format neuronpedia --to exports "${d[@]}" --json
is 'v["labels"] == 3 and v["features"] == 96 and v["examples"] > 100' out || fail "export: $(cat out)"
folder=$(value 'v["folder"]' out)
case $folder in exports/*/1-espalier-res-96) ;; *) fail "the folder: $folder" ;; esac
python3 - "$folder" <<'PY'
import glob, gzip, json, os, sys
folder = sys.argv[1]
model, source = folder.split("/")[1:]
one = lambda n: json.loads(open(os.path.join(folder, n)).read())
rows = lambda n: [json.loads(s) for f in sorted(glob.glob(os.path.join(folder, n, "*.gz"))) for s in gzip.open(f, "rt", encoding="utf-8")]
assert one("model.jsonl")["id"] == model and one("source.jsonl")["id"] == source and one("source.jsonl")["setName"] == one("sourceset.jsonl")["name"]
e, f, a = rows("explanations"), rows("features"), rows("activations")
assert [r["index"] for r in e] == ["1", "2", "95"] and all(r["modelId"] == model and r["layer"] == source and len(r["id"]) == 25 for r in e + a)
assert e[0]["description"] == 'apologies "quoted" na\u00efve \U0001f980' and e[0]["explanationModelName"] is None and e[1]["explanationModelName"] == "some-model"
assert [r["index"] for r in f] == [str(i) for i in range(96)]
for r in f:
    assert len(r["freq_hist_data_bar_heights"]) == len(r["freq_hist_data_bar_values"]) == 50 and len(r["pos_str"]) == len(r["pos_values"])
    assert 0 <= r["frac_nonzero"] <= 1 and r["pos_values"] == sorted(r["pos_values"], reverse=True) and len(r["topkCosSimIndices"]) == 10
    mine = [x for x in a if x["index"] == r["index"]]
    assert not mine or abs(max(x["maxValue"] for x in mine) - r["maxActApprox"]) < 0.01 * r["maxActApprox"]
for x in a:
    assert len(x["tokens"]) == len(x["values"]) and 0 <= x["maxValueTokenIndex"] < len(x["tokens"])
    assert abs(x["values"][x["maxValueTokenIndex"]] - x["maxValue"]) < 0.01 * x["maxValue"] and x["minValue"] == min(x["values"])
PY

# ---- the dashboards back into an atlas: what was exported, but for what an export does not say
cp -r dict bare; rm bare/atlas.esa
want 0 atlas bare --neuronpedia "$folder" --model tiny.gguf --json
is 'v["features"] == 96 and v["examples"] > 100 and v["empty"] == 0' out || fail "atlas of an export: $(cat out)"
for f in 0 1 17 42 95; do
  want 0 features show $f "${d[@]}" --json; cp out theirs
  want 0 features show $f --model tiny.gguf --dictionary bare --json
  python3 - <<'PY' || fail "feature $f through an export"
import json
a, b = (json.load(open(f)) for f in ("theirs", "out"))
near = lambda x, y: abs(x - y) <= 0.02 * max(abs(x), abs(y)) + 1e-3
assert near(a["density"], b["density"]) and near(a["max"], b["max"]) and abs(a["mean"] - b["mean"]) <= a["max"] / 50, (a["density"], b["density"], a["mean"], b["mean"])
assert a["histogram"] == b["histogram"]
words = lambda x: [t["token"] for t in x if "\\x" not in t["token"]] # half a character has no text
assert len(words(b["promoted"])) > 3 and words(a["promoted"]) == words(b["promoted"]) and words(a["suppressed"]) == words(b["suppressed"])
assert sorted(e["tokens"] for e in a["examples"]) == sorted(e["tokens"] for e in b["examples"])
assert sorted((e["tokens"], e["peak"]) for i in a["intervals"] for e in i["examples"]) == sorted((e["tokens"], e["peak"]) for i in b["intervals"] for e in i["examples"])
assert all(near(x["max"], y["max"]) for x, y in zip(a["examples"], b["examples"]))
assert [(i["share"], len(i["examples"])) for i in a["intervals"]] == [(i["share"], len(i["examples"])) for i in b["intervals"]]
PY
done
printf '{"modelId":"m","layer":"l","index":"3","maxActApprox":2,"frac_nonzero":0.01,"pos_str":["\u2581the","no such token"],"pos_values":[1e999,1],"activations":[{"tokens":["a","b"],"values":[0,2]},{"tokens":[],"values":[]}]}' >one.json
refused 1 "one.json" atlas bare --neuronpedia one.json --model tiny.gguf
printf '{"modelId":"m","layer":"l","index":"3","maxActApprox":2,"frac_nonzero":0.01,"pos_str":["\u2581the",7],"pos_values":[1],"activations":[{"tokens":["a","b"],"values":[0,2]},{"tokens":["a"],"values":[-1]}]}' >one.json
want 0 atlas bare --neuronpedia one.json --model tiny.gguf --json
is 'v["features"] == 1 and v["examples"] == 1 and v["empty"] == 1' out || fail "one feature's JSON: $(cat out)"
printf '{"index":"96","maxActApprox":2}' >one.json; refused 1 "feature 96" atlas bare --neuronpedia one.json --model tiny.gguf
refused 1 "absent" atlas bare --neuronpedia absent --model tiny.gguf
want 2 atlas bare --model tiny.gguf; want 2 atlas bare --harvest harvest --neuronpedia x --model tiny.gguf

# ---- back into an empty workspace: the same labels
same() { # what the workspace in --home $1 has is what was exported
  want 0 label export --json --home "$1" "${d[@]}"
  python3 - <<'PY'
import json
a, b = ([{k: v for k, v in l.items() if k != "time"} for l in json.load(open(f)) if l["text"]] for f in ("first", "out"))
assert a == b, (a, b)
PY
}
want 0 label import "$folder" --format neuronpedia --home n1 "${d[@]}" --json
is 'v == {"imported": 3, "kept": 0, "more": 0, "other": 0}' out || fail "import: $(cat out)"
same n1
want 0 label import "$folder/explanations/batch-0.jsonl.gz" --format neuronpedia --home n2 "${d[@]}"; same n2
want 0 label undo --home n2 "${d[@]}"; want 0 label export --home n2 "${d[@]}"; [ ! -s out ] || fail "an import is undone as one"
want 0 label export --format neuronpedia --to again --home n1 "${d[@]}"
python3 - "$folder" "again/${folder#exports/}" <<'PY'
import gzip, json, sys
a, b = ([json.loads(s) for s in gzip.open(f + "/explanations/batch-0.jsonl.gz")] for f in sys.argv[1:])
for r in a + b:
    del r["espalier"]["time"] # of the import
assert a == b
PY

# scores of an automatic label go along
want 0 label import "$folder" --format neuronpedia --home n3 "${d[@]}"
python3 - "$folder" <<'PY'
import gzip, json, sys
p = sys.argv[1] + "/explanations/batch-0.jsonl.gz"
r = [json.loads(s) for s in gzip.open(p)]
r[1]["scores"] = [{"value": 0.75, "explanationScoreTypeName": "eleuther_recall", "explanationScoreModelName": "m"}, {"value": 0.5, "explanationScoreTypeName": "eleuther_fuzz"},
                  {"value": "x", "explanationScoreTypeName": "eleuther_fuzz"}, {"value": 1e999, "explanationScoreTypeName": "y"}]
with open("scored.jsonl", "w") as f:
    for x in r:
        f.write(json.dumps(x).replace("Infinity", "9") + "\n\n")
PY
want 0 label import scored.jsonl --format neuronpedia --home n4 "${d[@]}"
want 0 features show 2 --json --home n4 "${d[@]}"; is 'v["scores"]["detection"] == 0.75 and v["scores"]["fuzzing"] == 0.5' out || fail "scores: $(cat out)"
want 0 label export --format neuronpedia --to scored --labels-only --home n4 "${d[@]}" --json; is 'v["features"] == 0 and v["labels"] == 3' out || fail "--labels-only"
zcat scored/*/*/explanations/batch-0.jsonl.gz | grep -q '"value":0.75,"explanationScoreTypeName":"eleuther_recall"' || fail "scores out again"

# ---- a basis is a list
want 0 basis new b 2 95 7 "${d[@]}"
want 0 label export --format neuronpedia --to lists --basis b --model-id my-model --source 1-mine-res "${d[@]}" --json
is 'v["folder"] == "lists/my-model/1-mine-res" and v["features"] == 3 and v["labels"] == 2' out || fail "--basis: $(cat out)"
list=lists/my-model/1-mine-res
is 'v == {"name": "b", "description": ""}' $list/list-new.json || fail "the list's name"
is '[(f["modelId"], f["layer"], f["index"]) for f in v["featuresToAdd"]] == [("my-model", "1-mine-res", i) for i in ("2", "95", "7")] and v["listId"] == ""' $list/list-add-features-0.json || fail "the list"
is 'sum("description" in f for f in v["featuresToAdd"]) == 2 and all(isinstance(f.get("description", ""), str) for f in v["featuresToAdd"])' $list/list-add-features-0.json || fail "descriptions"
refused 1 "must be ids" label export --format neuronpedia --to x --source ../../up "${d[@]}"
refused 1 "must be ids" label export --format neuronpedia --to x --model-id a/b "${d[@]}"
refused 2 "--to FOLDER" label export --format neuronpedia "${d[@]}"
refused 2 "--format" label export --format xml "${d[@]}"
refused 2 "--format" label import own.jsonl --format xml "${d[@]}"

# ---- as the site gives one feature, and batches that others made: which explanation is taken
cat >one.json <<'X'
{
  "modelId": "gpt2-small", "layer": "1-res-jb", "index": "7", "maxActApprox": 3.5, "pos_str": [" a"], "activations": [{"tokens": ["a"], "values": [1]}],
  "explanations": [
    {"id": "c1", "description": "first of a model", "explanationModelName": "gpt-4o-mini", "typeName": "np_max-act", "scores": []},
    {"id": "c2", "description": "better\n of a model", "explanationModelName": "claude", "scores": [{"value": 0.9, "explanationScoreTypeName": "eleuther_fuzz"}]}
  ]
}
X
want 0 label import one.json --format neuronpedia --home n5 "${d[@]}" --json; is 'v == {"imported": 1, "kept": 0, "more": 1, "other": 0}' out || fail "one feature: $(cat out)"
want 0 label export --json --home n5 "${d[@]}"; is 'len(v) == 1 and v[0]["feature"] == 7 and v[0]["text"] == "better of a model" and v[0]["author"] == "auto:claude"' out || fail "which: $(cat out)"
gzip -k one.json
want 0 label import one.json.gz --format neuronpedia --home n5 "${d[@]}"
want 0 label add --feature 7 --text "a person's" --home n5 "${d[@]}"
want 0 label import one.json --format neuronpedia --home n5 "${d[@]}" --json; is 'v["imported"] == 0 and v["kept"] == 1' out || fail "a person's label: $(cat out)"
want 0 label export --json --home n5 "${d[@]}"; is 'v[0]["text"] == "a person'"'"'s"' out || fail "a person's label was replaced"
python3 - <<'PY'
import gzip, json
row = lambda i, text, **k: json.dumps({"id": "c%s" % i, "modelId": "gpt2-small", "layer": k.pop("layer", "1-res-jb"), "index": i, "authorId": "x", "description": text, "typeName": "t",
                                       "explanationModelName": "gpt-4o-mini", "umap_x": 0, **k}) + "\n"
open("two.jsonl", "w").write(row("3", "of one") + row("4", "of another", layer="2-res-jb"))
open("person.jsonl", "w").write(row("3", "a model's", scores=[{"value": 1, "explanationScoreTypeName": "s"}]) + row(3, "a person's", explanationModelName=None) + row("3", "  \n "))
open("mixed.jsonl", "w").write(row("5", "x" * 5000) + json.dumps({"modelId": "m", "index": "1", "tokens": ["a"], "values": [0]}) + "\n" + json.dumps({"index": "1", "frac_nonzero": 0}) + "\n")
bad = {"far": row("96", "x"), "minus": row("-1", "x"), "words": row("1x", "x"), "none": json.dumps({"description": "x", "modelId": "m"}) + "\n", "number": "5\n", "text": row("1", 5), "esc": row("1", "\x1b[2Jred") + "{\x1b[2J\n",
       "hash": row("1", "x", espalier={"dictionary": "0" * 64}), "rating": row("1", "x", espalier={"rating": 9}), "half": row("1", "good") + '{"index": "1", "descr', "list": '{"explanations": [5]}\n',
       "tags": row("1", "x", espalier={"tags": [5]}), "deep": "[" * 100000 + "\n"}
for n, s in bad.items():
    open("bad-%s.jsonl" % n, "w").write(s)
open("bad-latin.jsonl", "wb").write(b'{"index":"1","description":"caf\xe9"}\n')
packed = gzip.compress(row("1", "x" * 100).encode() * 50)
open("bad-cut.jsonl.gz", "wb").write(packed[: len(packed) // 2])
open("bad-crc.jsonl.gz", "wb").write(packed[:-8] + b"\0" * 8)
open("bad-long.jsonl.gz", "wb").write(gzip.compress(b'{"index":"1","description":"' + b"x" * (40 << 20), 9))
open("bad-spaces.jsonl.gz", "wb").write(gzip.compress(b" " * (40 << 20), 9))
PY
refused 1 "holds records of gpt2-small/1-res-jb and of gpt2-small/2-res-jb" label import two.jsonl --format neuronpedia --home n6 "${d[@]}"
want 0 label import two.jsonl --format neuronpedia --source 2-res-jb --home n6 "${d[@]}" --json; is 'v["imported"] == 1' out || fail "--source"
want 0 label import person.jsonl --format neuronpedia --home n7 "${d[@]}" --json
want 0 label export --json --home n7 "${d[@]}"; is 'v[0]["text"] == "a person'"'"'s" and v[0]["author"] == "neuronpedia"' out || fail "a person's word before a model's: $(cat out)"
want 0 label import mixed.jsonl --format neuronpedia --home n8 "${d[@]}" --json; is 'v["imported"] == 1 and v["other"] == 2' out || fail "other records: $(cat out)"
want 0 label export --json --home n8 "${d[@]}"; is 'v[0]["text"] == "x" * 4096' out || fail "a long label is cut"

# ---- files that are not what they say: nothing of them is taken in
bad() { refused 1 "$2" label import "$1" --format neuronpedia --home n9 "${d[@]}"; want 0 label export --home n9 "${d[@]}"; [ ! -s out ] || fail "$1: took something in"; }
bad bad-far.jsonl "bad-far.jsonl:1: is about feature 96"
bad bad-minus.jsonl "without the \"index\""
bad bad-words.jsonl "without the \"index\""
bad bad-none.jsonl "is no explanation"
bad bad-number.jsonl "bad-number.jsonl:1:1: not valid JSON"
bad bad-text.jsonl "without a \"description\""
bad bad-esc.jsonl "bad-esc.jsonl:2"
bad bad-hash.jsonl "is of the dictionary with SHA-256 000"
bad bad-rating.jsonl "\"rating\""
bad bad-half.jsonl "bad-half.jsonl:2"
bad bad-list.jsonl "an explanation is a JSON object"
bad bad-tags.jsonl "\"tags\""
bad bad-deep.jsonl "bad-deep.jsonl"
bad bad-latin.jsonl "bad-latin.jsonl"
bad bad-cut.jsonl.gz "bad-cut.jsonl.gz"
bad bad-crc.jsonl.gz "damaged"
(ulimit -v 4000000; bad bad-long.jsonl.gz "a record of over 16 MB"; bad bad-spaces.jsonl.gz "a record of over 16 MB") || exit 1
bad nowhere.jsonl "nowhere.jsonl"
mkdir empty; bad empty "there are no explanations in it"
bad "$ESPALIER_BIN" "not valid JSON"
