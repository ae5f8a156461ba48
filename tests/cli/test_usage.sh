#!/usr/bin/env bash
# Usage errors (exit 2), help, version, configuration, standard output that cannot be written.
. "$(dirname "$0")/lib.sh"

refused 2 "there is no option --bogus" --bogus
refused 2 "there is no command 'nope'" nope
refused 2 "--threads wants a whole number" --threads many
refused 2 "--threads wants a value" --threads
refused 2 "--json takes no value" --json=3
refused 2 "chat: there is no option --frobnicate" chat --frobnicate
refused 2 "chat: there is no option -x" chat -x
refused 2 "--temperature wants a number from 0 to 10, not 'hot'" chat --prompt hi --temperature hot
refused 2 "--temperature wants" chat --prompt hi --temperature nan
refused 2 "--temperature wants" chat --prompt hi --temperature 1e999
refused 2 "--temperature wants" chat --prompt hi --temperature ""
refused 2 "--max-tokens wants" chat --prompt hi --max-tokens 0
refused 2 "--max-tokens wants" chat --prompt hi --max-tokens 99999999999999999999
refused 2 "--seed wants" chat --prompt hi --seed -1
refused 2 "one argument too many" chat more
refused 2 "the workbench needs a terminal" chat
refused 2 "a text or --file FILE is missing" tokenize
refused 2 "something is missing" score
refused 2 "--layers wants numbers" harvest x.txt --out d --layers 3,,4
refused 2 "--layers wants numbers" harvest x.txt --out d --layers 9999999999
refused 2 "there is no command 'bogus'" features bogus
refused 2 "--form is bias, gain, map or lora" adapt --basis b --experiences e --out o --form gane
refused 2 "--to is control-vector, npz or json" export a --to pickle b
refused 2 "--against is llama.cpp, peft or torch, not 'llama'" bench --against llama
refused 2 "--only and --against do not go together" bench --against peft --only adapt
refused 2 "--only is memory, load, chat, context, batch, encode, adapt, learning, dictionary or card, not 'speech'" bench --only speech
refused 2 "--python is for --against" bench --python python3
refused 2 "--model-hf is for --against peft" bench --model-hf d
want 2 features
want 2 basis

commands="chat answer tokenize score encode harvest train atlas adapt drift export bench doctor"
for c in $commands "features list" "features show" "features search" "features for-text" "features contrast" "label add" "label import" \
  "label export" "label undo" "basis new" "basis add" "basis remove" "basis show" "basis list" "basis export" "basis import" "dictionary info" \
  "dictionary stats" "dictionary convert" "eval margin" "eval neutral"; do
  # shellcheck disable=SC2086
  want 0 $c --help
  grep -q "^Usage: espalier $c" out || fail "no usage in the help of $c"
  grep -q "^Examples:" out || fail "no examples in the help of $c"
  [ ! -s err ] || fail "the help of $c says something on standard error"
done
want 0 --help
for c in $commands features label basis dictionary eval; do grep -q "^  $c " out || fail "$c is not in the help"; done
want 0 --version
grep -Eq '^espalier [0-9]+\.[0-9]+\.[0-9]+$' out || fail "version"

# Where the default model belongs, for ./run: only where it is needed and absent.
default=$HOME/.local/share/espalier/models/SmolLM2-135M-Instruct.Q4_1.gguf
[ "$(espalier --missing-model chat --prompt hi)" = "$default" ] || fail "chat needs the model"
[ "$(espalier --missing-model)" = "$default" ] || fail "the workbench needs the model"
[ "$(espalier --missing-model doctor --home "$work/h")" = "$work/h/models/SmolLM2-135M-Instruct.Q4_1.gguf" ] || fail "--home"
for a in --help "chat --help" "chat --model x.gguf" "train d --layer 3" "--model x.gguf chat" nope --version; do
  # shellcheck disable=SC2086
  [ -z "$(espalier --missing-model $a)" ] || fail "$a needs no model"
done

# No HOME: said, not guessed.
(unset HOME; refused 1 "HOME is not set" doctor)
refused 1 "there is no model at $default" chat --prompt hi
refused 1 "cannot open" chat --prompt hi --model "$work/none.gguf"

# Configuration
mkdir -p "$HOME/.config/espalier"
config=$HOME/.config/espalier/config.ini
tiny
printf 'model = %s\nthreads = 1\n\n[chat]\ntemperature = 0\nmax_tokens = 4\nsystem = Be brief.\n  Be kind.\n' "$work/tiny.gguf" >"$config"
want 0 chat --prompt hi --json
is 'v["tokens"] <= 4' out || fail "max_tokens of the configuration"
printf 'modell = x\n' >"$config"; refused 1 "config.ini:1: there is no setting 'modell'" chat --prompt hi
printf '\n[chat]\ntemperature = warm\n' >"$config"; refused 1 "config.ini:3: 'warm' is no value for temperature" chat --prompt hi
printf '[chatt]\nx = 1\n' >"$config"; refused 1 "there is no section [chatt]" chat --prompt hi
printf 'nonsense\n' >"$config"; refused 1 "config.ini:1: not a 'name = value' line" chat --prompt hi
python3 -c 'print("model = " + "x" * 500)' >"$config"; refused 1 "the line is over" chat --prompt hi
python3 -c 'print("x" * 10000000)' >"$config"; refused 1 "config.ini" chat --prompt hi
printf 'model = \0x\n' >"$config"; refused 1 "zero byte" chat --prompt hi
printf 'author = \033]0;x\007\nbad\n' >"$config"; refused 1 "config.ini:2" chat --prompt hi
rm "$config"; mkdir "$config"; refused 1 "config.ini" chat --prompt hi
rmdir "$config"

# Standard output that cannot be written is a failure.
if [ -w /dev/full ]; then
  got=0; espalier tokenize hello --model tiny.gguf >/dev/full 2>err || got=$?
  [ $got -eq 1 ] || fail "a full disk goes unnoticed: exit $got"
  grep -q "cannot write to standard output" err || fail "a full disk is not named"
fi
