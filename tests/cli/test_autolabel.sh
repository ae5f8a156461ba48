#!/usr/bin/env bash
# label auto against a server with canned answers that is slow, cuts, lies, refuses and goes on without end: labels and scores of what came, one clear line
# about what did not, nothing asked twice, no key anywhere, and people's labels as they were.
. "$(dirname "$0")/lib.sh"
command -v python3 >/dev/null || { echo "skipped: no python3"; exit 77; }
unset ESPALIER_API_KEY SSL_CERT_FILE http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY
export no_proxy='*'
tiny_dictionary
d=(--model tiny.gguf --dictionary dict)

mkdir srv
tls=()
if command -v openssl >/dev/null; then
  openssl req -x509 -newkey rsa:2048 -nodes -keyout srv/key.pem -out srv/cert.pem -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2>/dev/null && tls=(srv/cert.pem srv/key.pem)
fi
python3 "$(dirname "$0")/llm_server.py" srv "${tls[@]}" &
server=$!
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 100); do [ -s srv/ports ] && break; sleep 0.1; done
read -r port other secure <srv/ports || fail "the server did not start"
at=http://127.0.0.1:$port
requests() { grep -c "${1:-path}" srv/log || true; }
i=0
# fresh: another home, and another URL of the server's, so that it counts anew
fresh() { i=$((i + 1)); home=h$i; : >srv/log; }
auto() { # CODE KIND ARGS...: features 1 and 2 unless ARGS name others
  local code=$1 kind=$2; shift 2
  want "$code" label auto "$@" --endpoint "$at/$kind/$i/v1" --with canned --home "$home" "${d[@]}" --quiet
}
stops() { # TEXT KIND ARGS...: nothing is labelled
  local text=$1 kind=$2; shift 2
  fresh
  auto 1 "$kind" 1 2 3 4 5 6 --scores none --json "$@"
  [ "$(grep -c '^espalier: ' err)" -eq 1 ] && grep -qF -- "$text" err || { cat err >&2; fail "$kind: the error does not say '$text'"; }
  is 'v["labelled"] == 0' out || fail "$kind: labelled something: $(cat out)"
  plain err; plain out
}
comes() { # KIND ARGS...: both features get their labels
  local kind=$1; shift
  fresh
  auto 0 "$kind" 1 2 --scores none --json "$@"
  is 'v["labelled"] == 2 and all(f["label"].startswith("words like ") for f in v["features"])' out || fail "$kind: $(cat out)"
}
all_features=$(seq 0 95)

# ---- as it should be: labels, scores, the workspace, and the same again
fresh
want 0 label add --feature 2 --text "mine" --author ann --home $home "${d[@]}"
auto 0 good 1 2 3 --json; cp out first
is 'v["labelled"] == 2 and v["author"] == "auto:canned"' out || fail "labels: $(cat out)"
is '[f["why"] for f in v["features"] if f["feature"] == 2] == ["has a label of ann"]' out || fail "a person's label: $(cat out)"
is 'all(set(f["scores"]) == {"detection", "detection_f1", "fuzzing", "fuzzing_f1", "simulation"} for f in v["features"] if f["stored"])' out || fail "scores: $(cat out)"
is 'all(f["scores"]["fuzzing"] == 0.5 for f in v["features"] if f["stored"])' out || fail "all fuzzed windows are marked, so this server says 1 to all: $(cat out)"
is 'v["spent"]["prompt_tokens"] == 100 * v["spent"]["requests"] and v["spent"]["answer_tokens"] == 10 * v["spent"]["requests"]' out || fail "the server's count"
want 0 label export --json --home $home "${d[@]}"
is '{l["feature"]: l["author"] for l in v} == {1: "auto:canned", 2: "ann", 3: "auto:canned"}' out || fail "in the workspace: $(cat out)"
is '[l["text"] for l in v if l["feature"] == 2] == ["mine"]' out || fail "a person's label was changed"
want 0 features show 1 --json --home $home "${d[@]}"
python3 - <<'PY'
import json
one = next(f for f in json.load(open("first"))["features"] if f["feature"] == 1)
got = json.load(open("out"))
assert got["label"] == one["label"] and got["scores"] == one["scores"], got
PY
grep -q '"temperature": 0' srv/log && grep -q '"model": "canned"' srv/log || fail "the request: $(head -1 srv/log)"
! grep -q '"authorization"' srv/log || fail "a key that nobody gave"
before=$(requests)
auto 0 good 1 2 3 --json; is 'v["labelled"] == 0 and v["spent"]["requests"] == 0' out || fail "asked for what is there"
auto 0 good 1 2 3 --again --json; is 'v["labelled"] == 2 and v["spent"]["requests"] == 0 and v["spent"]["kept"] > 0' out || fail "--again asks what was answered: $(cat out)"
[ "$(requests)" -eq "$before" ] || fail "asked twice"
want 0 label add --feature 1 --text "changed by a person" --author ann --home $home "${d[@]}"
auto 0 good 1 --again --json; is 'v["labelled"] == 0' out || fail "an edited label was replaced"
want 0 features show 1 --json --home $home "${d[@]}"; is 'v["scores"] == {}' out || fail "the scores are of another label: $(cat out)"
auto 0 good 3 5; grep -q "detection" out || [ ! -s out ] || grep -q "has an automatic label" out || fail "as text: $(cat out)"
# the same whatever the order in which answers come
fresh; auto 0 good 1 3 --json --concurrency 1
python3 - <<'PY'
import json
a, b = ({f["feature"]: (f["label"], f["scores"]) for f in json.load(open(n))["features"] if f["feature"] in (1, 3)} for n in ("first", "out"))
assert a == b, (a, b)
PY

# ---- which features
fresh; auto 0 good --limit 3 --scores none --json; is 'v["labelled"] == 3' out || fail "--limit"
want 0 basis new b 4 9 --home $home "${d[@]}"
auto 0 good --basis b --scores none --json; is 'sorted(f["feature"] for f in v["features"]) == [4, 9]' out || fail "--basis: $(cat out)"
auto 0 good --filter "is:unlabelled" --limit 2 --scores none --json; is 'v["labelled"] == 2' out || fail "--filter"
fresh; auto 1 good 1 96; grep -q "no feature '96'" err || fail "a feature that is not there"
refused 2 "do not go together" label auto 1 --basis b "${d[@]}"
refused 2 "--scores" label auto 1 --scores nice "${d[@]}"
refused 2 "needs --price-in" label auto 1 --max-cost 1 "${d[@]}"
refused 1 "which of the endpoint's models" label auto 1 --endpoint $at/good/v1 "${d[@]}" --home $home
refused 1 "no http or https URL" label auto 1 --endpoint file:///etc/passwd --with x "${d[@]}" --home $home
refused 1 "no user, password or query" label auto 1 --endpoint "http://me:hush@127.0.0.1:$port/v1" --with x "${d[@]}" --home $home
! grep -q hush err || fail "a password in the error"
refused 1 "no user, password or query" label auto 1 --endpoint "$at/good/v1?key=hush" --with x "${d[@]}" --home $home

# ---- dry run: what would be asked and what it costs; nothing is
fresh; auto 0 good 1 2 --dry-run --price-in 2 --price-out 8
grep -q "^LABEL: the ends of common" out && grep -q "<<" out && grep -q "2 features: " out && grep -q "at most about" out || fail "dry run: $(tail -3 out)"
[ "$(requests)" -eq 0 ] || fail "a dry run asked something"
want 0 label export --home $home "${d[@]}"; [ ! -s out ] || fail "a dry run labelled something"
auto 0 good 1 --dry-run --json --scores none; is 'v["dry_run"] and v["spent"]["requests"] == 1' out || fail "dry run as JSON: $(cat out)"

# ---- ways to answer that are all right
comes whole
comes no-done
comes cut; [ "$(requests)" -eq 3 ] || fail "cut once: $(requests) requests"
comes broken
comes after
comes ill; [ "$(requests)" -eq 4 ] || fail "a 500, then right: $(requests) requests"
comes trickle
fresh; auto 0 bytes 1 --scores none --json; is 'v["features"][0]["label"] == "na\u00efve caf\u00e9s \U0001f980"' out || fail "split characters: $(cat out)"
comes picky; fresh; auto 0 picky 1 --json
is '"simulation" not in v["features"][0]["scores"] and "detection" in v["features"][0]["scores"]' out || fail "without log-probabilities: $(cat out)"
fresh; auto 0 bare 1 3 4 --json --concurrency 8
is 'v["labelled"] == 3 and all("simulation" not in f["scores"] and "fuzzing" in f["scores"] for f in v["features"])' out || fail "log-probabilities that do not come: $(cat out)"
fresh; auto 0 babble 1 --json; is 'v["labelled"] == 1 and v["features"][0]["scores"] == {}' out || fail "no judgements: $(cat out)"

# ---- waits that a server asks for: in seconds, as a date, too long, none said
waited() { python3 -c 'import json; t = [json.loads(s)["time"] for s in open("srv/log")]; print(int(max(t) - min(t) >= float(__import__("sys").argv[1])))' "$1"; }
comes busy --concurrency 1; [ "$(waited 0.9)" = 1 ] || fail "Retry-After in seconds was not kept"
comes busy-date --concurrency 1; [ "$(waited 0.9)" = 1 ] || fail "Retry-After as a date was not kept"
stops "asks to wait 86400 s (HTTP 429)" busy-long
stops "slow down" busy-always --tries 2
stops "HTTP 503" ill-always --tries 2 --concurrency 1; [ "$(requests)" -eq 10 ] || fail "two tries each of five: $(requests)"

# ---- answers that are none
stops "stopped in the middle" half --tries 2
stops "no JSON" garbage --tries 1
stops "no UTF-8" latin --tries 1
stops "no JSON" nul --tries 1
stops "is empty" empty --tries 1
stops "a web page" page
stops "goes on and on" endless
stops "has no end" pings
stops "has no end" line
stops "has no end" flood
stops "the server says: overloaded" in-stream --tries 1
stops "there is no such address or model: no such model" nowhere
stops "HTTP 418" status/418 --tries 1
stops "HTTP 500" status/500 --tries 1
fresh; auto 0 stall 1 --scores none --stall 1 --json; is 'v["labelled"] == 1' out || fail "a stall is no end"
stops "no whole answer came within 1 s" drip --timeout 1 --tries 1 --concurrency 8
fresh; want 1 label auto 1 --scores none --endpoint http://127.0.0.1:1/v1 --with x --home $home "${d[@]}" --quiet; grep -q "no connection" err || fail "no server: $(cat err)"
# ---- where a key goes: from a file or the environment to its own address, and nowhere else
printf 's3cret-k3y-0123\n' >key
stops "which is not followed" moved --key-file key
[ "$(requests "\"port\": $other")" -eq 0 ] || fail "followed a redirect to another address"
! grep -q secret=1 err || fail "a redirect's query in the error"
comes secret --key-file key
[ "$(requests '"authorization": "Bearer s3cret-k3y-0123"')" -eq 2 ] || fail "the key was not sent"
stops "a key is wanted" secret
ESPALIER_API_KEY=s3cret-k3y-0123 comes secret
printf 'another-k3y-99999\n' >wrong; stops "the key is not taken" secret --key-file wrong; ! grep -q another-k3y err || fail "the key is in the error: $(cat err)"
! grep -q other-k3y out || fail "the key is in the answer"
stops "repeats the key" echo --key-file key --tries 1
: >empty; fresh; auto 1 good 1 --key-file empty; grep -q "holds no key" err || fail "an empty key file: $(cat err)"
printf 'two\nlines\n' >two; fresh; auto 1 good 1 --key-file two; grep -q "one line is wanted" err || fail "a key of two lines"
fresh; refused 1 "over https only" label auto 1 --endpoint http://example.invalid/v1 --with x --key-file key --home $home "${d[@]}"
! grep -rql s3cret h[0-9]* out err || fail "the key was written down: $(grep -rl s3cret h[0-9]* out err)"
if [ -n "${secure:-}" ]; then
  fresh; want 1 label auto 1 --scores none --endpoint "https://localhost:$secure/good/v1" --with x --key-file key --home $home "${d[@]}" --quiet
  grep -q "certificate cannot be trusted" err && [ "$(requests)" -eq 0 ] || fail "an untrusted certificate: $(cat err)"
  SSL_CERT_FILE=srv/cert.pem want 0 label auto 1 --scores none --endpoint "https://localhost:$secure/good/v1" --with x --key-file key --home $home "${d[@]}" --quiet
fi

# ---- the configuration names it all
mkdir -p "$HOME/.config/espalier/prompts"
printf '[endpoint]\nurl = %s/secret/cfg/v1\nmodel = from-config\nkey_file = %s/key\nprice_in = 1\nprice_out = 2\nconcurrency = 2\n' "$at" "$work" >"$HOME/.config/espalier/config.ini"
fresh; want 0 label auto 1 --scores none --json --home $home "${d[@]}" --quiet
is 'v["author"] == "auto:from-config" and abs(v["spent"]["cost"] - 0.00012) < 1e-9' out || fail "configured: $(cat out)"
printf '[endpoint]\nkey = x\n' >"$HOME/.config/espalier/config.ini"; refused 1 "there is no setting 'key' in [endpoint]" label auto 1 "${d[@]}"
rm "$HOME/.config/espalier/config.ini"

# ---- prompts of one's own
printf 'mine\n=== user\nTexts: say it.\n{examples}\n{promoted} {unknown} {\n' >"$HOME/.config/espalier/prompts/explain.txt"
fresh; auto 0 good 1 --scores none --json; grep -q "say it" srv/log && grep -q "{unknown} {" srv/log || fail "one's own prompt: $(cat srv/log)"
[ "$(requests '"role": "system"')" -eq 0 ] || fail "the shipped prompt was mixed in"
for bad in '=== user\n' '=== tool\nx {examples}\n' 'no section {examples}\n' '=== user\n{examples}\n=== assistant\nx\n' '=== user\nnothing\n' '=== user\n\xff{examples}\n'; do
  # shellcheck disable=SC2059
  printf "$bad" >"$HOME/.config/espalier/prompts/explain.txt"
  fresh; auto 1 good 1; grep -q "explain.txt" err || fail "a bad prompt: $bad: $(cat err)"; plain err
done
rm -r "$HOME/.config/espalier/prompts"
mkdir own; printf '=== user\nTexts: another.\n{examples}\n' >own/explain.txt
fresh; auto 0 good 1 --scores none --prompts own; grep -q "another" srv/log || fail "--prompts"

# ---- budgets
fresh; auto 1 good $all_features --scores none --max-requests 3 --json --concurrency 2
is 'v["labelled"] == 3 and v["spent"]["requests"] == 3' out && grep -q "budget of 3 requests is spent" err || fail "--max-requests: $(cat out err)"
[ "$(requests)" -eq 3 ] || fail "asked more than the budget"
auto 0 good $all_features --scores none --max-requests 1000 --json; is 'v["spent"]["requests"] == v["labelled"] <= 93 and v["labelled"] > 10' out || fail "went on: $(cat out)"
fresh; auto 1 good $all_features --scores none --max-tokens 3k --json; is '0 < v["labelled"] < 20 and v["spent"]["prompt_tokens"] + v["spent"]["answer_tokens"] <= 3000' out || fail "--max-tokens: $(cat out)"
grep -q "budget of 3000 tokens" err || fail "--max-tokens: $(cat err)"
fresh; auto 1 good $all_features --scores none --max-cost 0.005 --price-in 1 --price-out 4 --json; is '0 < v["labelled"] < 60 and v["spent"]["cost"] <= 0.005' out || fail "--max-cost: $(cat out)"

# ---- several at once
fresh; auto 0 slow $all_features --limit 12 --scores none --concurrency 6
python3 -c 'import json; m = max(json.loads(s)["under_way"] for s in open("srv/log")); assert 2 < m <= 6, m' || fail "concurrency"

# ---- interrupted, killed, two at once: what is done stays, what was answered is not asked again
fresh
# begin CONCURRENCY REQUESTS: in the background, until so many came to the server
begin() {
  "$ESPALIER_BIN" label auto $all_features --scores none --endpoint "$at/slower/$i/v1" --with canned --home $home "${d[@]}" --concurrency "$1" --json >out.behind 2>err.behind &
  pid=$!
  for _ in $(seq 400); do [ "$(requests)" -ge "$2" ] && break; sleep 0.05; done
}
begin 2 8
refused 1 "another espalier" label auto 1 --endpoint "$at/slower/$i/v1" --with canned --home $home "${d[@]}"
kill -TERM $pid; code=0; wait $pid || code=$?
[ $code -eq 143 ] && grep -q "interrupted" err.behind || fail "an interrupt: exit $code: $(cat err.behind)"
is '4 <= v["labelled"] < 90' out.behind || fail "an interrupt lost what was done: $(cat out.behind)"
kept=$(value 'v["labelled"]' out.behind)
want 0 label export --json --home $home "${d[@]}"; is "len(v) == $kept" out || fail "an interrupt lost labels"
begin 4 20
kill -9 $pid; wait $pid 2>/dev/null || true
want 0 label export --json --home $home "${d[@]}"; kept=$(value 'len(v)' out)
[ "$kept" -ge 10 ] || fail "kill -9 lost labels: $kept"
printf '{"key":"torn' >>$home/autolabel/*.jsonl
auto 0 slower $all_features --limit 30 --scores none --json --concurrency 16
want 0 label export --json --home $home "${d[@]}"; is 'len(v) >= 25' out || fail "did not go on after kill -9"
python3 - <<'PY'
import collections, json
c = collections.Counter(json.dumps(json.loads(s)["asked"]["messages"]) for s in open("srv/log"))
assert sum(1 for n in c.values() if n > 1) <= 8, "asked again beyond what was on its way: %r" % [n for n in c.values() if n > 1]
PY
printf 'garbage\n{"key":1}\n\n[[[\n' >w.jsonl
fresh; auto 0 good 1 --scores none --work w.jsonl --json; is 'v["labelled"] == 1' out || fail "a work file that holds nonsense"
head -4 w.jsonl | cmp - <(printf 'garbage\n{"key":1}\n\n[[[\n') || fail "the work file was rewritten"
fresh; auto 0 good 1 --scores none --work w.jsonl --json; is 'v["spent"]["requests"] == 1' out || fail "another address is another answerer"
auto 1 good 1 --work /dev/null; grep -q "is not a file" err || fail "a work file that is none: $(cat err)"

# ---- no endpoint: the local model answers, whatever it can; its context is small, so the prompts are
mkdir short
printf '=== user\n{examples}\n' >short/explain.txt
for p in detect fuzz; do printf '=== user\n{label}{count}\n{examples}\n' >short/$p.txt; done
printf '=== user\n{label}{count}\n{tokens}\n' >short/simulate.txt
local=(--home h-local "${d[@]}" --json --quiet --answer 16 --examples 4 --tests 2 --batch 2 --prompts short)
want 0 label auto 1 "${local[@]}"
is 'v["author"].startswith("auto:") and len(v["features"]) == 1 and v["spent"]["requests"] >= 5 and v["spent"]["kept"] == 0' out || fail "the local model: $(cat out)"
is 'v["labelled"] == 1 and v["features"][0]["label"]' out || fail "the local model said nothing: $(cat out)"
cp out first; want 0 label auto 1 "${local[@]}" --again
is 'v["spent"]["requests"] == 0 and v["spent"]["kept"] >= 5' out || fail "the local model was asked twice: $(cat out)"
python3 -c 'import json; a, b = (json.load(open(f))["features"] for f in ("first", "out")); assert a == b' || fail "kept answers give another label"
want 0 label auto 1 "${local[@]}" --again --with tiny.gguf --work other.jsonl; is 'v["spent"]["requests"] >= 5' out || fail "--with FILE"
refused 1 "nowhere.gguf" label auto 1 --with nowhere.gguf --home h-local "${d[@]}"
want 0 label auto 1 --home h-long "${d[@]}" --json --quiet; is 'v["labelled"] == 0 and "do not fit" in v["features"][0]["why"]' out || fail "a prompt that is too long: $(cat out)"
