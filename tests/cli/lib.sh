# shellcheck shell=bash
# Sourced by the scripts here: a home of their own, the program under test, and checks that say what went wrong and stop.
set -euo pipefail
: "${ESPALIER_BIN:?}" "${ESPALIER_MAKE_TINY:?}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export HOME=$work/user
unset ESPALIER_HOME XDG_DATA_HOME XDG_CONFIG_HOME NO_COLOR
mkdir -p "$HOME"
real=${ESPALIER_TEST_MODEL:-}
cd "$work"

fail() { echo "FAILED (${BASH_SOURCE[1]##*/}:${BASH_LINENO[0]}): $*" >&2; exit 1; }
espalier() { "$ESPALIER_BIN" "$@"; }

# is EXPRESSION FILE: a Python expression over v, the JSON in the file, is true. value EXPRESSION FILE prints it.
value() { python3 -c 'import json, math, sys
print(eval(sys.argv[1], {"v": json.load(open(sys.argv[2])), "math": math}))' "$1" "$2"; }
is() { [ "$(value "bool($1)" "$2")" = True ]; }

# want CODE ARGS...: runs espalier, keeps stdout in ./out and stderr in ./err, checks the exit code
want() {
  local code=$1 got=0
  shift
  "$ESPALIER_BIN" "$@" >out 2>err </dev/null || got=$?
  [ "$got" -eq "$code" ] || { tail -n 30 err >&2; fail "espalier $*: exit $got, not $code (line ${BASH_LINENO[0]}, ${BASH_LINENO[1]-})"; }
}

# refused CODE TEXT ARGS...: fails with CODE, says TEXT in one line that begins with "espalier: ", and prints nothing else
refused() {
  local code=$1 text=$2
  shift 2
  want "$code" "$@"
  [ "$(grep -c '^espalier: ' err)" -eq 1 ] || { cat err >&2; fail "espalier $*: not one error line (line ${BASH_LINENO[0]})"; }
  grep '^espalier: ' err | grep -qF -- "$text" || { cat err >&2; fail "espalier $*: the error does not say '$text'"; }
  [ ! -s out ] || { head -c 300 out >&2; fail "espalier $*: printed something although it failed"; }
  plain err
}

# plain FILE: no escape byte in it
plain() { ! LC_ALL=C grep -q "$(printf '\033')" "$1" || fail "an escape sequence in $1"; }

tiny() { [ -f tiny.gguf ] || "$ESPALIER_MAKE_TINY" tiny.gguf; }

# A dictionary with its atlas for the tiny model, made by the program itself: tiny.gguf, texts.jsonl, pairs.jsonl, harvest/, dict/
tiny_dictionary() {
  tiny
  python3 - <<'PY'
import json, random
random.seed(1)
words = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were all her she there would their we him been has when who will no more if out so up said what its about than into them can only other time new some could these two may first then do any like my now over such our man me even most made after also did many off before must well back through years where much your way down should because long each just state those people too mr how little good world".split()
with open("texts.jsonl", "w") as f:
    for _ in range(60):
        f.write(json.dumps({"text": " ".join(random.choice(words) for _ in range(60))}) + "\n")
with open("pairs.jsonl", "w") as f:
    for i in range(6):
        f.write(json.dumps({"messages": [{"role": "user", "content": "say " + random.choice(words)}], "preferred": "short",
                            "rejected": "a much longer answer than that", "source": "test"}) + "\n")
PY
  want 0 harvest texts.jsonl --layers 1 --context 64 --out harvest --model tiny.gguf --quiet
  want 0 train harvest --layer 1 --features 96 --k 8 --batch 256 --tokens 8k --out dict --quiet
  want 0 atlas dict --harvest harvest --model tiny.gguf --quiet
}
