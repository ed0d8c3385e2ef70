#!/bin/sh
# What docs/results.md and docs/ablations.md quote, from the data to the tables. Run it again to go on: what is finished is not
# made again. DATA is the folder that holds the benchmarks' files.
#
#   DATA=../data scripts/reproduce_results.sh                 # all parts, one after the other: a day and more on two cores
#   DATA=../data scripts/reproduce_results.sh small baselines # some parts
#   DATA=../data scripts/reproduce_results.sh --print         # the commands, without running them
#
# Also read: OUT (runs/results), SEEDS (3), MODEL (minilm), PRESET (fast), L2G_RAY (the command, l2g-ray).
set -eu

: "${DATA:?set DATA to the folder that holds the benchmarks, for example DATA=../data}"
OUT=${OUT:-runs/results}
SEEDS=${SEEDS:-3}
L2G_RAY=${L2G_RAY:-l2g-ray}
PARTS="demo predictors small mpra gue nt baselines figure5 source alpha combine depth adapt"
PRINT=

run() {
    name=$1
    shift
    set -- "$@" --preset "${PRESET:-fast}" --language-model "${MODEL:-minilm}" --data-dir "$DATA" --seeds "$SEEDS" --out "$OUT" --name "$name"
    echo "$L2G_RAY $*"
    [ -n "$PRINT" ] || $L2G_RAY "$@"
}

part() {
    case $1 in
    demo) run demo suite --bench demo ;;
    predictors) # `python scripts/results_tables.py "$OUT"/predictors-*` makes the files of results/ and the page's tables of them
        for one in gue/mouse_2 gue/mouse_0 gue/tf_3 gue/prom_core_notata uci/splice_junction nt/promoter_tata nt/enhancers nt/H3 \
            mpra/yeast_native_promoters demo/enhancer_grammar; do
            run "predictors-$(echo $one | tr / -)" suite --bench "${one%/*}" --tasks "${one#*/}"
        done ;;
    small)
        run gue-small suite --bench gue --tasks mouse_2,mouse_0
        run nt-small suite --bench nt --tasks H3,enhancers,promoter_tata
        ;;
    mpra) run mpra suite --bench mpra --tasks yeast_native_promoters ;;
    gue) run gue suite --bench gue --tasks mouse_0,mouse_2,tf_0,tf_1,tf_3,prom_core_all,prom_core_notata ;;
    nt) run nt suite --bench nt ;;
    baselines)
        run baselines baseline simple,cnn_only,orca,vanilla,frozen_lm gue/mouse_0 gue/mouse_2 nt/promoter_tata nt/H3 demo/splice_junction ;;
    figure5) run figure5 ablate nt/H3 nt/enhancers nt/promoter_tata --study all ;;
    source | alpha | combine | depth | adapt) run "$1" ablate gue/mouse_0 nt/promoter_tata nt/H3 --study "$1" ;;
    *)
        echo "$0: no part '$1'; parts are: $PARTS" >&2
        exit 2
        ;;
    esac
}

if [ "${1:-}" = --print ]; then
    PRINT=yes
    shift
fi
[ $# -gt 0 ] || set -- $PARTS
for one in "$@"; do part "$one"; done
