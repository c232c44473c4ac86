#!/usr/bin/env bash
# One GPU, an unknown vLLM, seven minutes: what works there, and what is it worth?
#
#     bash benchmarks/gpu.sh                     on a machine with a GPU, or
#     REHEARSE=cpu bash benchmarks/gpu.sh        the same steps on the CPU engine, or
#     REHEARSE=simulated bash benchmarks/gpu.sh  on the simulated one
#
# Each step has a time limit, a log and an exit status of its own; the next one runs whatever it
# ended with. Steps for which no time is left are left out. The end is a table in OUT/steps.txt and
# one page, OUT/index.html. The exit status is 0 if all steps ended with 0.
#
# OUT            folder of results (default: outputs/gpu)
# PYTHON         interpreter with the workbench (default: python3)
# ENGINE_PYTHON  interpreter with vLLM, if that is another (default: the same)
# MODEL          model folder or hub name (default: a 7B shape with dummy weights, made here)
# TOTAL_S        time for all steps, in seconds (default: 420)
# STEPS          which steps (default: all)
set -u
cd "$(dirname "$0")/.." || exit 2
OUT=${OUT:-outputs/gpu}
PYTHON=${PYTHON:-python3}
TOTAL_S=${TOTAL_S:-420}
STEPS=${STEPS:-plans environment prefix lmcache nixl hits inprocess kernels}
REHEARSE=${REHEARSE:-}
mkdir -p "$OUT/logs" || exit 2
OUT=$(cd "$OUT" && pwd)
printf '%-12s %6s %9s  %s\n' step exit seconds log > "$OUT/steps.txt"
began=$SECONDS failed=0

# make_model FOLDER: a Llama of 7B shape. Its weights are dummies, so it needs no download; the
# tokenizer is the tiny model's, which leaves 6.6 of the 6.7 billion parameters.
make_model() {
    "$PYTHON" - "$1" "${ENGINE_PYTHON:-}" <<'PY'
import json
import shutil
import sys
from pathlib import Path

from workbench.hardware.interpreter import interpreter
from workbench.serve.tiny_model import tiny_model

folder, tiny = Path(sys.argv[1]), tiny_model(engine=interpreter(sys.argv[2]))
shape = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128,
}
folder.mkdir(parents=True, exist_ok=True)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(tiny / name, folder)
config = json.loads((tiny / "config.json").read_text()) | shape
(folder / "config.json").write_text(json.dumps(config, indent=2))
PY
}

# step NAME LIMIT_S COMMAND...: run it within its limit, or what is left of the total.
step() {
    local name=$1 limit=$2 left status started
    shift 2
    case " $STEPS " in *" $name "*) ;; *) return ;; esac
    left=$((TOTAL_S - (SECONDS - began)))
    if [ "$left" -lt 10 ]; then
        printf '%-12s %6s %9s  %s\n' "$name" - 0 "no time left" | tee -a "$OUT/steps.txt"
        failed=1
        return
    fi
    [ "$limit" -gt "$left" ] && limit=$left
    echo "$name: at most $limit s"
    started=$SECONDS
    # An interrupt ends the run and every server that it started, and keeps what was measured.
    timeout --signal=INT --kill-after=20 "$limit" "$@" > "$OUT/logs/$name.log" 2>&1
    status=$?
    [ "$status" -eq 0 ] || failed=1
    tail -n 3 "$OUT/logs/$name.log"
    printf '%-12s %6s %9s  %s\n' \
        "$name" "$status" $((SECONDS - started)) "logs/$name.log" | tee -a "$OUT/steps.txt"
}

run() { # run STEP LIMIT_S NOTEBOOK [-p NAME VALUE]...
    local name=$1 limit=$2 notebook=$3
    shift 3
    step "$name" "$limit" "$PYTHON" -m workbench.cli run "$notebook" --force \
        -p output_dir "$OUT" ${ENGINE_PYTHON:+-p engine_python "$ENGINE_PYTHON"} "$@"
}

case $REHEARSE in
    simulated)
        engine=(-p engine simulated)
        checked=(-p smoke False)
        tokens=2000
        ;;
    cpu)
        engine=(-p platform cpu -p engine_args "--load-format dummy")
        checked=(-p platform cpu -p smoke False)
        tokens=2000
        ;;
    "")
        if [ -z "${MODEL:-}" ]; then
            MODEL=$OUT/7b
            make_model "$MODEL" > "$OUT/logs/model.log" 2>&1 || { cat "$OUT/logs/model.log"; exit 1; }
            weights="--load-format dummy"
        fi
        # Without compilation and CUDA graphs an instance starts in a fraction of the time.
        engine=(-p model "$MODEL" -p context_tokens 16384)
        engine+=(-p engine_args "${weights:-} --enforce-eager")
        checked=()
        tokens=8000
        ;;
    *)
        echo "REHEARSE must be cpu or simulated, got '$REHEARSE' (example: REHEARSE=cpu)" >&2
        exit 2
        ;;
esac
short=(-p rounds 1 -p requests 3 -p output_tokens 32)
shared=("${short[@]}" -p prompt_tokens "$tokens" -p opponents False)
[ -z "$REHEARSE" ] && shared+=(-p instances_per_gpu 2)

# The command lines of a GPU run, on any machine with nvidia-smi: nothing is started.
step plans 60 "$PYTHON" - <<'PY'
import workbench as wb

MODEL = {"platform": "cuda", "model": "Qwen/Qwen2.5-7B-Instruct", "output_tokens": 32}
PAIR = {"topology": "1p1d", "instances_per_gpu": 2, "opponents": False}
for notebook, given in (
    ("single_instance_prefix_cache", {}),
    ("pd_sweep", {"connector": "lmcache", **PAIR}),
    ("pd_sweep", {"connector": "nixl", **PAIR}),
):
    print(wb.plan(wb.check_params(notebook, MODEL | given)), "\n")
PY
run environment 60 environment_check "${checked[@]}"
run prefix 100 single_instance_prefix_cache "${engine[@]}" "${short[@]}" \
    -p prompt_tokens "$tokens" -p shares 0.5
run lmcache 80 pd_sweep "${engine[@]}" "${shared[@]}" -p topology 1p1d -p connector lmcache
run nixl 70 pd_sweep "${engine[@]}" "${shared[@]}" -p topology 1p1d -p connector nixl
run hits "${HITS_S:-70}" lmcache_hit_analysis "${engine[@]}" -p rounds 1 -p requests 2 \
    -p prompt_tokens 900,1900 -p chunk_tokens 256
run inprocess 60 pd_sweep "${engine[@]}" "${shared[@]}" -p topology 1a -p connector lmcache-inprocess
run kernels 40 paper_claim_validation -p tiers source,kernel -p time_budget_s 25

"$PYTHON" -m workbench.cli index --output-dir "$OUT" || failed=1
cat "$OUT/steps.txt"
exit $failed
