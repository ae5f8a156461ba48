#!/usr/bin/env bash
# label merge, conflicts, choose, show-first, agreement, test, redo; features next; basis report. With the tiny model and a dictionary made for it.
. "$(dirname "$0")/lib.sh"
tiny_dictionary
m=(--model tiny.gguf --dictionary dict --quiet)

# two features that fire rarely enough for windows on which they do not
want 0 features list --limit 0 "${m[@]}" --json
read -r A B C <<<"$(value '" ".join(str(f) for d, f in sorted((x["density"], x["feature"]) for x in v if x["density"] > 0)[:3])' out)"

# two people, kept apart
want 0 label add "${m[@]}" --feature "$A" --text "hedging" --tags "tone hedge" --confidence 80 --note $'seen twice\nin letters' --author ann
want 0 label add "${m[@]}" --feature "$A" --text "perhaps, maybe" --tags "tone" --author bob
want 0 label add "${m[@]}" --feature "$B" --text "lists" --tags "format" --author ann
want 0 label add "${m[@]}" --feature "$B" --text "Lists" --tags "format" --author bob
want 0 label export "${m[@]}" --json
is 'len(v) == 4 and {x["author"] for x in v} == {"ann", "bob"}' out || fail "label export holds not all opinions"
is '[x for x in v if x["text"] == "hedging"][0]["confidence"] == 80' out || fail "confidence"
is '[x for x in v if x["text"] == "hedging"][0]["note"] == "seen twice\nin letters"' out || fail "note"
want 0 label conflicts "${m[@]}" --json
is 'len(v) == 1 and v[0]["feature"] == '"$A"' and v[0]["shown"] == "bob" and len(v[0]["labels"]) == 2' out || fail "conflicts"
want 0 label choose "$A" ann "${m[@]}" --json; is 'v["label"] == "hedging"' out || fail "choose"
want 0 label conflicts "${m[@]}" --json; is 'v == []' out || fail "a conflict that was settled"
want 0 label undo "${m[@]}"
want 0 label conflicts "${m[@]}" --json; is 'len(v) == 1' out || fail "a choice cannot be undone"
want 0 label redo "${m[@]}" --json; is 'v["feature"] == '"$A" out || fail "redo"
refused 1 "carl said nothing" label choose "$A" carl "${m[@]}"
refused 1 "there is no feature '960'" label choose 960 ann "${m[@]}"
want 2 label choose "$A" "${m[@]}"
want 0 label choose "$A" --none "${m[@]}"
want 0 label show-first ann "${m[@]}"; want 0 label show-first "${m[@]}" --json; is 'v["author"] == "ann"' out || fail "show-first"
want 0 features search is:conflict "${m[@]}" --json; is '[x["feature"] for x in v] == ['"$A"'] and v[0]["label"] == "hedging"' out || fail "is:conflict"
want 0 features show "$A" "${m[@]}" --json
is 'v["label"] == "hedging" and v["tags"] == "tone hedge" and v["note"] == "seen twice\nin letters" and v["author"] == "ann"' out || fail "a dashboard without its tags, note or author"
want 0 features show "$A" "${m[@]}"; grep -q "^tags  *tone hedge$" out && grep -q "^label by  *ann$" out || fail "the same in words: $(cat out)"
want 0 features search by:bob "${m[@]}" --json; is '{x["feature"] for x in v} == {'"$A, $B"'}' out || fail "by:"

# agreement: tags of two features: hedge (only ann), tone (both), format (both): 6 units, 2 both, 1 only ann, 3 neither
want 0 label agreement "${m[@]}" --json
is 'len(v) == 1 and v[0]["tagged"] == 2 and v[0]["labelled"] == 2 and v[0]["same"] == 1' out || fail "agreement"
is 'abs(v[0]["tags"]["kappa"] - (5/6 - (3*2 + 3*4)/36) / (1 - (3*2 + 3*4)/36)) < 1e-6 and v[0]["tags"]["n"] == 6' out || fail "kappa of tags"
want 0 label agreement "${m[@]}"; grep -q "ann and bob: 2 features tagged by both" out || fail "agreement in words"

# merging what was exported elsewhere: own labels stay in sight, conflicts are told
want 0 label export "${m[@]}"; cp out theirs.jsonl
other=(--home elsewhere "${m[@]}")
want 0 label add "${other[@]}" --feature "$A" --text "my own words"
want 0 label merge theirs.jsonl "${other[@]}" --json
is 'v["read"] == 4 and v["added"] == 4 and len(v["conflicts"]) == 1' out || fail "merge"
want 0 features search "$A" "${other[@]}" --json; is 'v[0]["label"] == "my own words"' out || fail "merging hid one's own label"
want 0 label merge theirs.jsonl "${other[@]}" --json; is 'v["same"] == 4 and v["added"] == 0' out || fail "merged again"
sed 's/"dictionary":"[0-9a-f]*"/"dictionary":"0123"/' theirs.jsonl >wrong.jsonl
refused 1 "wrong.jsonl:1" label merge theirs.jsonl wrong.jsonl "${other[@]}"
refused 1 "absent.jsonl" label merge absent.jsonl "${other[@]}"
printf '{"feature":1,"text":"\\u001b[31m evil","author":"x"}\n' >evil.jsonl
want 0 label merge evil.jsonl "${other[@]}"; want 0 label conflicts "${other[@]}"; plain out

# the blind test: through standard input, by --answers, by the model
refused 1 "has no label to test" label test "$C" --seed 1 --answers none "${m[@]}"
want 2 label test "$A" --answers "1" "${m[@]}"
want 2 label test "$A" "$B" "${m[@]}"
espalier label test "$A" --seed 5 "${m[@]}" --json </dev/null >one; cp one out
is 'len(v["windows"]) == 10 and "active" not in v["windows"][0] and v["label"] == "hedging" and v["seed"] == 5' out || fail "the test itself"
want 0 features search "score>=0" "${m[@]}" --json; is 'v == []' out || fail "a score without an answer"
printf '[1, 2]\n' | espalier label test "$A" --seed 5 "${m[@]}" --json >two
[ "$(wc -l <two)" -eq 2 ] || fail "a test and its result are two lines"
head -n 1 two | cmp -s - one || fail "the same seed gives another test"
tail -n 1 two >result
is 'v["said"] == [1, 2] and v["n"] == 10 and len(v["active"]) == 5 and abs(v["score"] - (v["hit"] / 5 + v["rejection"] / 5) / 2) < 1e-9' result || fail "the result"
right=$(value '" ".join(map(str, v["active"]))' result)
want 0 label test "$B" --seed 5 --answers none "${m[@]}" --json; is 'v["score"] == 0.5 and v["hit"] == 0' out || fail "none of them"
want 0 label test "$A" --seed 5 --answers "$right" "${m[@]}" --json; is 'v["score"] == 1 and v["lo"] < 0.8' out || fail "all right"
want 0 features search "score>0.4" "${m[@]}" --json; is '{x["feature"] for x in v} == {'"$A, $B"'}' out || fail "the filter on scores"
refused 1 "there is no window 11" label test "$A" --seed 5 --answers "11" "${m[@]}"
refused 1 "is no answer" label test "$A" --seed 5 --answers "two" "${m[@]}"
want 0 label test "$A" "$B" --seed 5 --auto --dry "${m[@]}" --json
is 'len(v) == 2 and v[0]["judge"].startswith("auto:") and all(len(x["windows"]) == 10 and "odds" in x["windows"][0] for x in v)' out || fail "--auto"
printf '1 4\n' | espalier label test "$B" --seed 6 "${m[@]}" >out; plain out; grep -q "of 10 right" out || fail "the test in words"

# the queue
want 0 features next --n 5 "${m[@]}" --json
is 'len(v) == 5 and all(a["value"] >= b["value"] for a, b in zip(v, v[1:])) and not {'"$A, $B"'} & {x["feature"] for x in v}' out || fail "features next"
is 'all(abs(x["value"] - x["effect"] * x["use"] * x["doubt"]) < 1e-9 for x in v)' out || fail "the value of the next"
first=$(value 'v[0]["feature"]' out)
want 0 label add "${m[@]}" --feature "$first" --text "done"
want 0 features next --n 1 "${m[@]}" --json; is "v[0]['feature'] != $first" out || fail "labelled, and still in the queue"
want 0 features next --n 3 --experiences pairs.jsonl "${m[@]}" --json; is 'len(v) == 3 and v[0]["effect"] > 0.5' out || fail "by experiences"
want 0 features next "${m[@]}"; plain out

# the report
want 0 basis new b "$A" "$B" "$C" "${m[@]}"
want 0 basis report b "${m[@]}"; plain out
grep -q "^## $A hedging" out && grep -q "label by ann" out && grep -q "80 % sure" out && grep -q "^> in letters" out && grep -q "score 0\." out || fail "basis report"
want 0 basis report b --format csv --out b.csv "${m[@]}"
python3 - <<'PY' || fail "the report as CSV"
import csv
rows = list(csv.DictReader(open("b.csv", newline="")))
assert len(rows) == 3 and len({r["feature"] for r in rows}) == 3
assert rows[0]["label"] == "hedging" and rows[0]["author"] == "ann" and 0 < float(rows[0]["score"]) <= 1 and rows[0]["example_1"]
assert rows[2]["label"] == "" and rows[2]["score"] == ""
PY
want 0 basis report b --format jsonl "${m[@]}"
python3 - <<'PY' || fail "the report as JSONL"
import json
rows = [json.loads(x) for x in open("out")]
assert len(rows) == 3 and rows[0]["note"] == "seen twice\nin letters" and rows[0]["score"]["n"] == 20
assert all(len(r["examples"]) == 2 and r["lo"] < r["hi"] for r in rows)
PY
want 2 basis report b --format xml "${m[@]}"
refused 1 "none" basis report none "${m[@]}"

# labels carried to another dictionary of the model: to the same one all of them, and back in through import; to one trained anew what is still there
want 0 label export "${m[@]}"; cp out all.jsonl; lines=$(wc -l <all.jsonl)
want 0 label carry dict dict all.jsonl texts.jsonl --out carried.jsonl "${m[@]}" --json
is 'v["read"] == '"$lines"' == v["carried"] and all(x["from"] == x["to"] and x["mutual"] and x["pearson"] > 0.999 for x in v["features"])' out || fail "carried to itself"
[ "$(wc -l <carried.jsonl)" -eq "$lines" ] || fail "carried.jsonl"
want 0 label import carried.jsonl --home third "${m[@]}" --json; is 'v["imported"] == '"$lines" out || fail "import of what was carried"
want 0 train harvest --layer 1 --features 96 --k 8 --tokens 20000 --batch 256 --seed 9 --out again --quiet
want 0 label carry dict again all.jsonl texts.jsonl --least 0.99 --out few.jsonl "${m[@]}" --json
is 'v["carried"] < v["read"]' out || fail "carried what is not there"
refused 1 "a label of the dictionary" label carry again dict all.jsonl texts.jsonl --out x.jsonl "${m[@]}"
refused 1 "absent" label carry dict absent all.jsonl texts.jsonl --out x.jsonl "${m[@]}"
want 2 label carry dict dict all.jsonl texts.jsonl "${m[@]}"
[ ! -e x.jsonl ] || fail "a refused carry left a file"

# dictionaries by name: those in home
mkdir -p named/dictionaries; cp -r dict named/dictionaries/mine
want 0 dictionary list --home named --json
is '[(x["layer"], x["features"]) for x in v if x["name"] == "mine"] == [(1, 96)]' out || fail "dictionary list"
want 0 features list --limit 1 --home named --model tiny.gguf --dictionary mine --json
refused 1 "nobody" features list --limit 1 --home named --model tiny.gguf --dictionary nobody

# a dashboard in a home that has not seen the dictionary yet, and again: the same examples
for i in 1 2 3; do want 0 features show "$A" --home fresh --model tiny.gguf --dictionary dict --json; mv out show$i; done
cmp show1 show2 && cmp show2 show3 || fail "the examples of a dashboard change with the state of the workspace"
