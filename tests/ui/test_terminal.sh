# The real program on a real terminal (tmux): what signals, a bad TERM and a pipe do to it. Skipped without tmux or without a model.
set -u
command -v tmux >/dev/null || { echo "tmux is not installed"; exit 77; }
model=${ESPALIER_TEST_MODEL:-${XDG_DATA_HOME:-$HOME/.local/share}/espalier/models/SmolLM2-135M-Instruct.Q4_1.gguf}
[ -r "$model" ] || { echo "no model at $model"; exit 77; }
dir=$(mktemp -d)
socket=$dir/tmux
t() { tmux -S "$socket" -f /dev/null "$@"; }
trap 't kill-server 2>/dev/null; rm -rf "$dir"' EXIT
failed=0
run="LC_ALL=C.UTF-8 '$ESPALIER_BIN' --home '$dir/home' --model '$model'"

screen() { t capture-pane -p; }
until_shows() { # TEXT SECONDS
    for _ in $(seq $((${2:-10} * 10))); do screen | grep -qF -- "$1" && return 0; sleep 0.1; done
    echo "not shown: $1"; screen; return 1
}
check() { "$@" || failed=1; }
# Starts the program behind a shell in a fresh terminal; the line "before" must be there again afterwards.
start() {
    t kill-server 2>/dev/null; sleep 0.2
    t new-session -d -x 80 -y 24 "PS1='ready> ' bash --norc --noprofile -i"
    t send-keys "clear; echo before; set -m; $1 $run; echo status=\$?" Enter
}
pid_of() { pgrep -n -f -- "--home $dir/home" ; }
restored() { # the shell's screen is back, typing shows, and no cursor keys or paste marks are left behind
    check until_shows before && check until_shows "${1:-status=}"
    screen | grep -q 'F1 Chat' && { echo "the workbench is still on the screen"; failed=1; }
    t send-keys 'echo ty''ped' Enter; check until_shows typed
    t display-message -p '#{alternate_on} #{cursor_flag} #{mouse_any_flag}' | grep -q '^0 1 0$' || { echo "the terminal's modes were not restored"; failed=1; }
}

start ""; check until_shows 'F1 Chat'
t send-keys ':quit' Enter; restored status=0

start ""; check until_shows 'F1 Chat'
for signal in TSTP STOP; do # stopped and continued, by itself and from outside
    kill -$signal "$(pid_of)"; check until_shows Stopped
    t send-keys 'fg' Enter; check until_shows 'F1 Chat'
done
t send-keys C-z; check until_shows Stopped; t send-keys 'fg' Enter; check until_shows 'F1 Chat'
t send-keys 'still alive'; check until_shows 'still alive'
t resize-window -x 100 -y 30; sleep 0.5; check until_shows 'still alive'
for i in $(seq 20); do t resize-window -x $((60 + i * 3)) -y $((20 + i)); done
t resize-window -x 80 -y 24; sleep 0.5; check until_shows 'still alive'
t send-keys C-c; sleep 0.2; check until_shows 'F1 Chat' # does not end it
kill -INT "$(pid_of)"; restored

for signal in TERM SEGV ABRT; do
    start ""; check until_shows 'F1 Chat'; sleep 0.5
    kill -$signal "$(pid_of)"; restored
done

start ""; check until_shows 'F1 Chat'; sleep 0.5
pid=$(pid_of)
t kill-server; for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done # SIGHUP, and the terminal is gone
kill -0 "$pid" 2>/dev/null && { echo "it outlived its terminal"; failed=1; kill "$pid"; }

for term in dumb '' nonsense; do
    start "TERM='$term'"; check until_shows 'status=1'; check until_shows 'cannot place text'
done

out=$("$ESPALIER_BIN" --home "$dir/home" --model "$model" </dev/null 2>&1 | cat); code=${PIPESTATUS[0]}
case $out in *terminal*) ;; *) echo "a pipe for a terminal: $out"; failed=1;; esac
case $out in *$'\x1b'*) echo "escape sequences went into a pipe"; failed=1;; esac
exit $failed
