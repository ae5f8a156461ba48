#!/usr/bin/env bash
# eval adapt, sequence and readable on the tiny model; the tasks that come with the program.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
d=(--model tiny.gguf --dictionary dict --threads 1)

python3 - <<'PY'
import json
with open("task.jsonl", "w") as f:
    print(json.dumps({"about": "short answers"}), file=f)
    for i in range(20):
        print(json.dumps({"messages": [{"role": "user", "content": f"say {i}"}], "preferred": f"short {i}", "rejected": f"a much longer answer than {i}"}), file=f)
with open("neutral.jsonl", "w") as f:
    for i in range(90):
        print(json.dumps({"text": "the world is old and the house is new"} if i % 2 else {"messages": [{"role": "user", "content": "say so"}], "reply": "it is so"}), file=f)
PY
small=(--held-out 4 --dev 2 --neutral neutral.jsonl --neutral-tokens 20 --chat-tokens 6 --experiences 2,4 --orders 2 --at 1,2 --choices 2 --behaviour 2 --behaviour-tokens 4
  --max-prompt 32 --max-reply 16 --quiet)
run=(eval adapt --task task.jsonl --methods none,features,loose=free,context "${small[@]}" "${d[@]}" --set loose.rank=2 --set features.rank=4 --set all.batch=2 --set features.basis_size=8 --set features.rate=0.01 --garbage 0,0.5
  --garbage-kind shuffle --compare features,loose)
want 0 "${run[@]}" --work w.jsonl --plot p.svg --json
is 'len(v["rows"]) == 4 * 2 * 2 * 2 and {r["task"] for r in v["rows"]} == {"task"}' out || fail "rows"
is 'all(k in r for r in v["rows"] for k in ("method", "experiences", "garbage", "order", "margin", "kl", "dnll", "seconds", "parameters"))' out || fail "members of a row"
is 'any(r["context_tokens"] > 0 for r in v["rows"] if r["method"] == "context")' out || fail "context tokens"
is 'any(x["what"] == "kl_at_equal" for x in v["ratios"])' out || fail "ratios"
grep -q '<polyline' p.svg || fail "the plot"
lines=$(wc -l <w.jsonl)
want 0 "${run[@]}" --work w.jsonl
[ "$(wc -l <w.jsonl)" -eq "$lines" ] || fail "finished runs were run again"
grep -q '| task | 4 | 50 % shuffle | `loose` |' out || fail "the table"
want 0 eval adapt --table --work w.jsonl --json
is 'len(v["rows"]) == 32' out || fail "--table"

# A basis with the direction of other pairs: every experience decided about, garbage marked, and the same weighting for a method without gradients of each
want 0 eval adapt --task task.jsonl --methods curated=features,lora-weighed=lora "${small[@]}" "${d[@]}" --set all.basis_pairs=4 --set curated.rank=4 --set curated.basis_size=8 \
  --set lora-weighed.rank=2 --set lora-weighed.basis_size=8 --garbage 0.5 --work c.jsonl --json --experiences 4 --orders 1
is 'len(v["rows"]) == 2' out || fail "weighed rows"
python3 - <<'PY' || fail "decisions"
import json
runs = [r for r in map(json.loads, open("c.jsonl")) if r.get("is") == "run"]
seen = [d for r in runs if r["method"] == "curated" for d in r["decisions"]]
assert len(seen) == 4 and sum(d["garbage"] for d in seen) == 2
assert all(0 <= d["weight"] <= 1 and -1.001 <= d["agreement"] <= 1.001 for d in seen)
bad = [d["agreement"] for d in seen if d["garbage"]]; good = [d["agreement"] for d in seen if not d["garbage"]]
assert max(bad) < min(good), seen # swapped ones point the other way
PY
# A method that will not learn from some experiences ends its run, not the evaluation: the row says why and has the base model's numbers
want 0 eval adapt --task task.jsonl --methods distil,lora "${small[@]}" "${d[@]}" --set all.rank=2 --set all.rate=0.001 --set distil.max_new=8 --work r.jsonl --json
is 'all(r["refused"].startswith("nothing is learned from it: the teacher has no advantage: margin of ") and abs(r["margin"]) + abs(r["kl"]) < 1e-6 for r in v["rows"] if r["method"] == "distil")' out || fail "refused rows"
is 'sum(r["method"] == "lora" and "refused" not in r and r["margin"] != 0 for r in v["rows"]) == 4' out || fail "the rows beside refused ones"
want 0 eval adapt --table --work r.jsonl
grep -q '^- task, `distil`, 4 pairs, order 1: nothing is learned from it' out || fail "the list of refusals"
# The other forms of the constrained adapter beside it
want 0 eval adapt --task task.jsonl --methods features,g=features,m=features "${small[@]}" "${d[@]}" --set all.basis_size=8 --set features.rank=4 --set g.form=gain --set m.form=map --set m.rate=0.001 \
  --work f.jsonl --json --experiences 2 --orders 1
is '{r["method"]: r["parameters"] for r in v["rows"]}["g"] == 8 and {r["method"]: r["parameters"] for r in v["rows"]}["m"] == 72' out || fail "forms"
refused 1 "no form" eval adapt --task task.jsonl --methods features --set features.form=round --work x.jsonl "${d[@]}" "${small[@]}"
refused 1 "prior needs white inputs" eval adapt --task task.jsonl --methods features --set features.prior=1 --work x.jsonl "${d[@]}" "${small[@]}"
refused 1 "weighed by a prior" eval adapt --task task.jsonl --methods lora --set lora.weighting=1 --work x.jsonl "${d[@]}" "${small[@]}"

refused 1 "no task nonsense" eval adapt --task nonsense --methods none --work w.jsonl "${d[@]}" "${small[@]}"
ESPALIER_DATA=/nowhere refused 1 "/nowhere/tasks/nonsense.jsonl" eval adapt --task nonsense --methods none --work w.jsonl "${d[@]}" "${small[@]}"
refused 1 "no method" eval adapt --task task.jsonl --methods magic --work w.jsonl "${d[@]}" "${small[@]}"
refused 1 "loose.colour" eval adapt --task task.jsonl --methods none --set loose.colour=2 --work w.jsonl "${d[@]}" "${small[@]}"
refused 1 "no option" eval adapt --task task.jsonl --methods lora --set lora.colour=2 --work w.jsonl "${d[@]}" "${small[@]}"
refused 1 "pool has" eval adapt --task task.jsonl --methods features --basis-pairs 40 --work w.jsonl "${d[@]}" "${small[@]}"
want 0 eval adapt --task task.jsonl --methods none "${d[@]}" "${small[@]}" --json; first=$(cat out)
want 0 eval adapt --task task.jsonl --methods none "${d[@]}" "${small[@]}" --json --quiet --table; [ "$first" = "$(cat out)" ] || fail "the usual work file is not found again"
refused 2 "--grid" eval adapt --grid some --work w.jsonl

mkdir -p data/tasks; cp task.jsonl data/tasks/mine.jsonl # a task in the data folder
want 0 eval adapt --task mine --data data --methods none --work m.jsonl "${d[@]}" "${small[@]}" --json
is 'v["rows"][0]["task"] == "mine"' out || fail "--data"

want 0 eval sequence --task politeness,guards --methods loose=free --set loose.rank=2 --experiences 2 --steps 1 --work s.jsonl "${d[@]}" --quiet --json
is '[r["task"] for r in v["rows"]] == ["politeness", "guards"] and all(r["margin_undone"] is not None for r in v["rows"])' out || fail "eval sequence"
want 0 eval sequence --task politeness,guards --methods distil --set distil.rank=2 --set distil.max_new=8 --experiences 2 --steps 1 --work sr.jsonl "${d[@]}" --quiet --json
is 'len(v["rows"]) == 2 and v["rows"][0]["refused"].startswith("nothing is learned from it") and v["rows"][0]["margin_learned"] == 0' out || fail "eval sequence with a refusal"
want 0 eval readable --learn 2 --steps 1 --size 4 --task politeness,guards "${d[@]}" --quiet --json
is 'len(v) == 2 and v[0]["place"] in (1, 2)' out || fail "eval readable --learn"
want 0 eval readable --learn 2 --steps 1 --size 8 --directions 4 --task politeness,guards "${d[@]}" --quiet --json
is 'len(v) == 2 and all(len(x["ranking"]) == 2 for x in v)' out || fail "eval readable --directions"
refused 2 "--learn" eval readable --directions 4 a.safetensors
want 0 basis new brief --suggest pairs.jsonl --size 8 "${d[@]}" --quiet
want 0 adapt --basis brief --experiences pairs.jsonl --steps 2 --out a.safetensors "${d[@]}" --quiet
want 0 eval readable a.safetensors "${d[@]}" --json
is 'len(v[0]["ranking"]) == 7 and "place" not in v[0]' out || fail "eval readable FILE"

# What is shipped: sizes, sets, no reply on both sides of the split, every line an experience
for t in brevity politeness directness formality typehints snakecase guards; do
  python3 - "$(dirname "$0")/../../data/tasks/$t.jsonl" <<'PY' || fail "$t"
import json, os, sys
assert os.path.getsize(sys.argv[1]) < 300_000
head, *rows = [json.loads(line) for line in open(sys.argv[1], encoding="utf-8")]
assert head["about"] and head["attribution"]
sets = {}
for r in rows:
    assert r["preferred"].strip() and r["rejected"].strip() and r["preferred"] != r["rejected"]
    sets.setdefault(r["set"], []).append(r)
n = {k: len(v) for k, v in sets.items()}
assert n["held"] >= 40 and n["pool"] >= 100 and n["dev"] >= 16 and n["off"] >= 20, n
held = {r["preferred"] for r in sets["held"]}
assert not held & {r["preferred"] for k in ("pool", "dev") for r in sets[k]}
PY
done
