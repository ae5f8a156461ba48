#!/usr/bin/env bash
# dictionary evaluate on the tiny model: every part, the work file, what is refused.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
python3 - <<'PY'
import json
with open("pairs70.jsonl", "w") as f:
    for i in range(70):
        print(json.dumps({"messages": [{"role": "user", "content": f"say {i}"}], "preferred": f"short {i}", "rejected": f"a much longer answer than {i}"}), file=f)
with open("own.jsonl", "w") as f:
    for i in range(90):
        print(json.dumps({"text": ["the world is old", "you and me and us", "9 8 7 6 5"][i % 3] + f" {i}", "label": ["world", "us", None][i % 3]}), file=f)
PY
e=(dictionary evaluate dict --model tiny.gguf --threads 1 --quiet)
want 0 "${e[@]}" texts.jsonl --tokens 500 --concepts own.jsonl --task pairs70.jsonl --kl 100 --replies 2 --work w.jsonl --json
is 'v["dictionary"]["features"] == 96 and v["dictionary"]["layer"] == 1 and len(v["dictionary"]["hash"]) == 64' out || fail "dictionary"
is '0 < v["stats"]["fvu"] and v["stats"]["tokens"] >= 500' out || fail "stats"
is 'sum(v["cosines"]["histogram"]) == v["cosines"]["features"] == 96' out || fail "cosines"
is 'sum("skipped" in s for s in v["probes"]["sets"]) == 6' out || fail "no data folder: the public sets are skipped, and it is said"
is '[c["concept"] for c in v["probes"]["sets"][-1]["concepts"]] == ["us", "world"] or [c["concept"] for c in v["probes"]["sets"][-1]["concepts"]] == ["world", "us"]' out || fail "own set"
is 'all(c["dense"] > 0.9 and len(c["features"]) >= 1 for c in v["probes"]["sets"][-1]["concepts"])' out || fail "probes"
is 'v["probes"]["mean"]["dense"] == v["probes"]["sets"][-1]["dense"]' out || fail "the mean is of the sets that were measured"
is '"words" in v["absorption"]["skipped"]' out || fail "absorption"
is '[w["way"] for w in v["steering"][0]["ways"]] == ["feature", "features", "random", "gradient"] and v["steering"][0]["task"] == "pairs70"' out || fail "steering"
is 'all(p["allowed"] == (p["kl"] <= 100 and p["degenerate"] <= v["steering"][0]["degenerate_base"] + 0.1) for w in v["steering"][0]["ways"] for p in w["points"] if p["kl"] is not None and p["degenerate"] is not None)' out || fail "bounds"
cp out first; lines=$(wc -l <w.jsonl)
want 0 "${e[@]}" texts.jsonl --tokens 500 --concepts own.jsonl --task pairs70.jsonl --kl 100 --replies 2 --work w.jsonl --json
cmp -s out first || fail "not the same figures from the work file"
[ "$(wc -l <w.jsonl)" -eq "$lines" ] || fail "measured again"
grep -q '"is":"dictionary"' w.jsonl || fail "lines of the work file"
want 0 "${e[@]}" texts.jsonl --tokens 500 --concepts own.jsonl --task pairs70.jsonl --kl 100 --replies 2 --work w.jsonl; plain out
for word in fvu 'cosine with the nearest' 'own.jsonl' 'not measured' 'Steering'; do grep -q "$word" out || fail "the table has no '$word'"; done
want 0 "${e[@]}" --parts cosines --json; is 'set(v) == {"dictionary", "cosines"}' out || fail "--parts"
ls "$HOME"/.local/share/espalier/eval/dictionary-*.jsonl >/dev/null || fail "the usual work file"

# Killed in the middle, it goes on
rm -f k.jsonl
for delay in 0.05 0.1 0.2 0.4; do
  timeout -s KILL $delay "$ESPALIER_BIN" "${e[@]}" texts.jsonl --tokens 500 --concepts own.jsonl --task pairs70.jsonl --kl 100 --replies 2 --work k.jsonl >/dev/null 2>&1 || true
done
want 0 "${e[@]}" texts.jsonl --tokens 500 --concepts own.jsonl --task pairs70.jsonl --kl 100 --replies 2 --work k.jsonl --json
cmp -s out first || fail "killed and gone on with, the figures differ"

refused 2 "--parts" "${e[@]}" --parts stats,nonsense
refused 2 "stats needs a FILE" "${e[@]}" --parts stats
refused 1 "own.jsonl" "${e[@]}" --parts probes --concepts not-there/own.jsonl --work x.jsonl
printf '{"text":"a"}\n{"label":"b"}\n' >bad.jsonl
refused 1 "bad.jsonl:2" "${e[@]}" --parts probes --concepts bad.jsonl --work x.jsonl
refused 1 "no task nonsense" "${e[@]}" --parts steering --task nonsense --work x.jsonl
printf 'not json\n' >x.jsonl
refused 1 "x.jsonl:1" "${e[@]}" --parts cosines --work x.jsonl
