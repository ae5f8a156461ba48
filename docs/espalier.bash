# bash completion for espalier: source this file
_espalier() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]-} choices=
  case $COMP_CWORD/$command in
    1/*) choices="chat answer tokenize score encode features label basis adapt drift eval export harvest train dictionary atlas bench fetch doctor --home --model --dictionary --threads --device --memory --json --quiet --help --version" ;;
    2/features) choices="list show search for-text contrast --help" ;;
    2/label) choices="add import export undo --help" ;;
    2/basis) choices="new add remove show list export import --help" ;;
    2/eval) choices="margin neutral adapt sequence readable --help" ;;
    2/dictionary) choices="info stats convert --help" ;;
    *)
      choices="--home --model --dictionary --threads --device --memory --json --quiet --help"
      case "$command ${COMP_WORDS[2]-}" in
        "chat "*) choices+=" --prompt --system --adapter --temperature --top-k --top-p --repeat-penalty --seed --max-tokens --context --exact" ;;
        "answer "*) choices+=" --out --max-tokens --limit --temperature --seed --jobs" ;;
        "tokenize "*) choices+=" --file --special" ;;
        "score "*) choices+=" --adapter --decoded" ;;
        "encode "*) choices+=" --top" ;;
        "features list"*) choices+=" --sort --limit --from --labelled" ;;
        "features show"*) choices+=" --examples" ;;
        "features search"*) choices+=" --limit" ;;
        "features for-text"*) choices+=" --top" ;;
        "features contrast"*) choices+=" --top --limit" ;;
        "label add"*) choices+=" --feature --text --tags --rating --author" ;;
        "label import"*) choices+=" --author" ;;
        "basis new"*) choices+=" --suggest --size --signs" ;;
        "basis add"*) choices+=" --lo --hi" ;;
        "basis show"*) choices+=" --experiences" ;;
        "basis export"*) choices+=" --to --feature --strength" ;;
        "basis import"*) choices+=" --name" ;;
        "adapt "*) choices+=" --basis --experiences --out --form --prefer --prefer-loss --steps --rate --rank --layers --unconstrained --batch --beta --kappa --replay --hold-out --adam --prior --prior-weight --one-sided --direction --no-weighting --seed --force" ;;
        "drift "*) choices+=" --top" ;;
        "eval margin"*) choices+=" --experiences --adapter --max-reply --each" ;;
        "eval neutral"*) choices+=" --text --adapter --limit" ;;
        "eval adapt"*) choices+=" --task --methods --set --experiences --garbage --garbage-kind --orders --grid --work --table --plot --compare --at --harm --sweep-tasks --basis-pairs --signs --neutral --neutral-tokens --chat-tokens --choices --choice-orders --choice-file --behaviour --behaviour-orders --behaviour-tokens --max-reply --max-prompt --held-out --dev --teacher --data --seed" ;;
        "eval sequence"*) choices+=" --task --methods --set --experiences --steps --orders --basis-pairs --signs --neutral --work --table --data --seed" ;;
        "eval readable"*) choices+=" --task --learn --steps --size --basis-pairs --signs --directions --top" ;;
        "export "*) choices+=" --to" ;;
        "harvest "*) choices+=" --layers --out --tokens --context --seed --with-first" ;;
        "train "*) choices+=" --layer --out --features --k --tokens --batch --rate --aux-k --aux-weight --dead-tokens --warmup --decay --checkpoint --seed --f32" ;;
        "dictionary stats"*) choices+=" --tokens" ;;
        "dictionary convert"*) choices+=" --to" ;;
        "atlas "*) choices+=" --harvest --out --examples --window --tokens" ;;
        "bench "*) choices+=" --repeat --prompt --tokens --context --only --small --against --python --model-hf" ;;
        "fetch "*) choices+=" --to --sha256 --token-file --limit --tries --stall" ;;
      esac ;;
  esac
  if [[ $word == -* || $COMP_CWORD -eq 1 || ( $COMP_CWORD -eq 2 && $choices != --* ) ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$word")
  else
    mapfile -t COMPREPLY < <(compgen -f -- "$word")
  fi
}
complete -o filenames -F _espalier espalier
