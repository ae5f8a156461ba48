# bash completion for espalier: source this file
_espalier() {
  local word=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]-} choices=
  case $COMP_CWORD/$command in
    1/*) choices="chat answer tokenize score encode features label basis adapt drift eval export harvest train dictionary atlas bench fetch doctor --home --model --dictionary --threads --device --memory --json --quiet --help --version" ;;
    2/features) choices="list show search for-text contrast next --help" ;;
    2/label) choices="add auto import export carry undo redo merge conflicts choose show-first agreement test --help" ;;
    2/basis) choices="new add remove show list export import report --help" ;;
    2/eval) choices="margin neutral adapt sequence readable --help" ;;
    2/dictionary) choices="list info stats evaluate convert map --help" ;;
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
        "features search"*) choices+=" --sort --limit" ;;
        "features for-text"*) choices+=" --top --sort" ;;
        "features contrast"*) choices+=" --top --limit" ;;
        "features next"*) choices+=" --n --experiences" ;;
        "label add"*) choices+=" --feature --text --tags --rating --confidence --note --author" ;;
        "label auto"*) choices+=" --basis --filter --limit --again --endpoint --with --key-file --local --scores --examples --tests --batch --answer --prompts --seed --max-requests --max-tokens --max-cost --price-in --price-out --concurrency --tries --stall --timeout --max-wait --work --dry-run" ;;
        "label import"*) choices+=" --author --format --source" ;;
        "label export"*) choices+=" --format --to --model-id --source --basis --labels-only" ;;
        "label carry"*) choices+=" --out --least --tokens" ;;
        "label merge"*) choices+=" --author" ;;
        "label choose"*) choices+=" --none" ;;
        "label show-first"*) choices+=" --none" ;;
        "label test"*) choices+=" --seed --answers --auto --author --dry" ;;
        "basis new"*) choices+=" --suggest --size --signs" ;;
        "basis add"*) choices+=" --vector --as --lo --hi" ;;
        "basis show"*) choices+=" --experiences" ;;
        "basis export"*) choices+=" --to --feature --vector --strength" ;;
        "basis import"*) choices+=" --name" ;;
        "basis report"*) choices+=" --format --out" ;;
        "adapt "*) choices+=" --basis --experiences --out --form --prefer --prefer-loss --steps --rate --rank --layers --unconstrained --batch --beta --kappa --replay --hold-out --adam --prior --prior-weight --one-sided --direction --no-weighting --seed --force" ;;
        "drift "*) choices+=" --top" ;;
        "eval margin"*) choices+=" --experiences --adapter --max-reply --each" ;;
        "eval neutral"*) choices+=" --text --adapter --limit" ;;
        "eval adapt"*) choices+=" --task --methods --set --experiences --garbage --garbage-kind --orders --grid --work --table --plot --compare --at --harm --sweep-tasks --basis-pairs --signs --neutral --neutral-tokens --chat-tokens --choices --choice-orders --choice-file --behaviour --behaviour-orders --behaviour-tokens --max-reply --max-prompt --held-out --dev --teacher --data --seed" ;;
        "eval sequence"*) choices+=" --task --methods --set --experiences --steps --orders --basis-pairs --signs --neutral --work --table --data --seed" ;;
        "eval readable"*) choices+=" --task --learn --steps --size --basis-pairs --signs --directions --top" ;;
        "export "*) choices+=" --to" ;;
        "harvest "*) choices+=" --layers --site --out --tokens --context --seed --exact --with-first" ;;
        "train "*) choices+=" --layer --layers --site --out --recipe --features --k --tokens --batch --rate --aux-k --aux-weight --dead-tokens --warmup --decay --sparsity --sparsity-warmup --bandwidth --prefixes --checkpoint --seed --f32 --harvest-tokens --context --stream --buffer --plan" ;;
        "dictionary stats"*) choices+=" --tokens" ;;
        "dictionary evaluate"*) choices+=" --parts --tokens --sample --concepts --texts --words --task --kl --replies --work --seed --data" ;;
        "dictionary convert"*) choices+=" --to" ;;
        "dictionary map"*) choices+=" --neighbours --epochs --seed --again" ;;
        "atlas "*) choices+=" --harvest --neuronpedia --source --out --examples --window --intervals --tokens" ;;
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
