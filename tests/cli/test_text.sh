#!/usr/bin/env bash
# tokenize, score, chat, answer: JSON, determinism, pipes, interrupts. With the tiny model, and the real one where it is.
. "$(dirname "$0")/lib.sh"
tiny
[ -z "$real" ] || [ -s "$real" ] || real=

for model in tiny.gguf ${real:+"$real"}; do
  m=(--model "$model")
  want 0 tokenize "Hello, world" "${m[@]}" --json
  is 'len(v["tokens"]) == len(v["pieces"]) and "".join(v["pieces"]) == "Hello, world"' out || fail "tokenize --json"
  printf 'Hello, world' >text.txt
  cp out one; want 0 tokenize --file text.txt "${m[@]}" --json; cmp -s one out || fail "--file differs from the argument"
  espalier tokenize - "${m[@]}" --json <text.txt >out; cmp -s one out || fail "standard input differs from the argument"
  want 0 tokenize "" "${m[@]}" --json
  [ "$(cat out)" = '{"tokens":[],"pieces":[]}' ] || fail "an empty text"
  want 0 tokenize '<|im_start|>' "${m[@]}" --json; is 'len(v["tokens"]) > 1' out || fail "a control token came out of plain text"
  want 0 tokenize '<|im_start|>' "${m[@]}" --json --special; is 'len(v["tokens"]) == 1' out || fail "--special"
  printf 'a\033[31m\xff' >bad.txt; want 0 tokenize --file bad.txt "${m[@]}"; plain out
  want 0 tokenize --file bad.txt "${m[@]}" --json; is 'v["pieces"]' out || fail "pieces of bytes that are not UTF-8"

  printf 'The cat sat on the mat.\n' >text.txt
  want 0 score text.txt "${m[@]}" --json
  is 'len(v["tokens"]) == len(v["logprobs"]) and v["logprobs"][0] is None and max(v["logprobs"][1:]) < 0' out || fail "score --json"
  cp out one; want 0 score text.txt "${m[@]}" --json --threads 1
  python3 - one out <<'PY' || fail "score depends on the number of threads"
import json, sys
a, b = (json.load(open(p))["logprobs"][1:] for p in sys.argv[1:])
sys.exit(max(abs(x - y) for x, y in zip(a, b)) > 1e-3)
PY
  : >empty.txt; want 0 score empty.txt "${m[@]}" --json
  want 0 score text.txt --decoded "${m[@]}" --json
  is 'len(v["decoded"]) == len(v["kls"]) == len(v["tokens"]) and v["decoded"][0] is None and 0 <= v["difference"] < 0.1 and -1e-6 < v["kl"] < 0.01' out || fail "score --decoded --json"
  want 0 score text.txt --decoded "${m[@]}"; grep -q "as a chat reads: " out || fail "score --decoded"

  want 0 chat --prompt "Say hi" --temperature 0 --max-tokens 12 "${m[@]}"; cp out one; plain out
  [ ! -s err ] || fail "chat says something on standard error"
  want 0 chat --prompt "Say hi" --temperature 0 --max-tokens 12 "${m[@]}"; cmp -s one out || fail "greedy answers differ"
  printf 'Say hi\n' | espalier chat --prompt - --temperature 0 --max-tokens 12 "${m[@]}" >out; cmp -s one out || fail "--prompt - differs"
  want 0 chat --prompt "Say hi" --seed 7 --max-tokens 12 "${m[@]}"; cp out one
  want 0 chat --prompt "Say hi" --seed 7 --max-tokens 12 "${m[@]}"; cmp -s one out || fail "the same seed gives another answer"
  want 0 chat --prompt "Say hi" --max-tokens 12 "${m[@]}" --json
  is 'len(v["ids"]) == v["tokens"] and v["tokens"] <= 12 and isinstance(v["text"], str) and v["seconds"] > 0' out || fail "chat --json"
  got=0; printf 'a\0b' | espalier chat --prompt - "${m[@]}" >out 2>err || got=$?
  [ $got -eq 1 ] && grep -q "zero byte" err || fail "a zero byte in the prompt"
done

# Too long for the context: said before any work.
python3 -c 'print("word " * 2000)' >long.txt
got=0; espalier chat --prompt - --model tiny.gguf <long.txt >out 2>err || got=$?
[ $got -eq 1 ] && grep -q "and the context" err || fail "a prompt over the context: exit $got"

# answer: resumes, leaves no half line; an answer depends on its prompt's line and the seed, not on the order
python3 -c 'import json
for i in range(6): print(json.dumps({"prompt": "question %d" % i}))' >prompts.jsonl
want 0 answer prompts.jsonl --out all.jsonl --max-tokens 8 --model tiny.gguf --quiet
want 0 answer prompts.jsonl --out part.jsonl --max-tokens 8 --limit 2 --model tiny.gguf --quiet
printf '{"line":3,"mess' >>part.jsonl
want 0 answer prompts.jsonl --out part.jsonl --max-tokens 8 --model tiny.gguf --quiet
sort all.jsonl >one; sort part.jsonl >two; cmp -s one two || fail "a resumed run gives other answers"
want 0 answer prompts.jsonl --out part.jsonl --max-tokens 8 --model tiny.gguf --json
is 'v["before"] + v["answered"] <= 6' out || fail "answered again"
printf '{"prompt":"fine"}\n{"nothing":1}\n' >bad.jsonl
refused 1 "bad.jsonl:2: holds no prompt" answer bad.jsonl --out x.jsonl --model tiny.gguf
refused 1 "is not an answer of this command" answer prompts.jsonl --out prompts.jsonl --model tiny.gguf
[ "$(wc -l <prompts.jsonl)" -eq 6 ] || fail "a wrong --out was damaged"

# bench: what each part of the plain model tells (not how fast)
bench() { want 0 bench --only "$1" --repeat 2 --tokens 8 --model tiny.gguf --json --quiet "${@:3}"; is "$2" out || fail "bench --only $1"; }
bench memory '0 < v["memory"]["median"] < 60 and v["memory"]["unit"] == "MB"'
bench load '0 < v["load"]["least"] <= v["load"]["median"] <= v["load"]["most"]'
bench context 'all(v[f"decode_{n}"]["median"] > 0 for n in (0, 504)) and "decode_2048" not in v and v["prefill_long"]["median"] > 0'
bench batch 'v["stream"]["median"] > 0 and v["batch"]["median"] > 0 and v["batch_ratio"]["runs"] == 2'
refused 1 "do not go with a model of 512" bench --only context --context 1024 --model tiny.gguf --quiet

# Ctrl-C: what there is stays, exit 130
if [ -n "$real" ]; then
  got=0
  python3 - "$ESPALIER_BIN" "$real" <<'PY' || got=$?
import os, signal, subprocess, sys, time
# A background job of a script has SIGINT ignored, and what ignores it keeps it so. Interrupted as soon as something has been said.
args = [sys.argv[1], "chat", "--prompt", "Write a very long story about a lighthouse.", "--max-tokens", "4000", "--context", "5000", "--seed", "1", "--model", sys.argv[2]]
p = subprocess.Popen(args, stdout=open("out", "wb"), stderr=open("err", "wb"), preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
while os.path.getsize("out") == 0 and p.poll() is None:
    time.sleep(0.02)
p.send_signal(signal.SIGINT)
sys.exit(p.wait())
PY
  [ $got -eq 130 ] || { cat err >&2; fail "an interrupted chat exits $got"; }
  [ -s out ] && [ "$(tail -c 1 out | wc -l)" -eq 1 ] || fail "an interrupted chat does not end its line"
fi
