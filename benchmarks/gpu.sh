#!/usr/bin/env bash
# Everything that wants a GPU, in one command and below eight minutes: tests, lens, attention, end to end, auto batches.
#
#   benchmarks/gpu.sh [FOLDER]             a file of Markdown for each part, in FOLDER, $OUT or benchmarks/results
#   benchmarks/gpu.sh --tiny [FOLDER]      the same on tiny sizes and a CPU: to see that no part fails for a silly reason
#   PARTS="lens auto" benchmarks/gpu.sh    these parts alone, in this order
#
# For a machine with torch for CUDA, transformers, lightning, triton and pytest. What else is needed is in the folder of
# wheels that gpu_wheels.sh makes ($WHEELS, or .whl), if it is there: they go into a temporary folder, without a network.
# Each part has a time limit of its own, and ends no other; what a part has measured is written down at once.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

TINY=
if [ "${1:-}" = --tiny ]; then TINY=yes && shift; fi
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
# Called site-packages: dill, by which datasets names its caches, takes what lies elsewhere for the code of a script.
export BENCHMARK_RESULTS=${1:-${OUT:-benchmarks/results}} PYTHON=${PYTHON:-python3} SCRATCH
export PYTHONPATH=$PWD:$SCRATCH/site-packages${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
WHEELS=${WHEELS:-.whl}
mkdir -p "$BENCHMARK_RESULTS"

# Seconds of each part at most.
declare -A LIMIT=([tests]=90 [lens]=105 [attention]=40 [end_to_end]=105 [auto]=80 [peers]=50)
PARTS=${PARTS:-tests lens attention end_to_end auto peers}
for each in $PARTS; do
    if [ -z "${LIMIT[$each]:-}" ]; then
        echo "PARTS: got $each; expected some of: ${!LIMIT[*]}" >&2
        exit 2
    fi
done
export TEST_DEVICE=cuda
# other releases warn of other things
export TESTS="-n 12 --dist worksteal -W default"
export LENS="--seconds 2"
export ATTENTION="--lengths 128,1024,4096 --tokens 32768 --seconds 2"
export END_TO_END="--size gpt2,llama-1.5b --dtypes bfloat16 --seconds 2"
export PEERS="--only transformer_lens --dtypes bfloat16 --sentences 1024 --rounds 2"
export AUTO="--size gpt2,llama-1.5b"
if [ -n "$TINY" ]; then
    TEST_DEVICE=cpu
    for each in "${!LIMIT[@]}"; do LIMIT[$each]=300; done # a CPU may have more to do
    TESTS="--collect-only -q"
    LENS="--shapes 1:9:16:301,3:4:16:301 --dtypes float32,bfloat16 --seconds 0"
    ATTENTION="--lengths 3,8 --tokens 16 --seconds 0"
    END_TO_END="--size tiny,tiny-llama --dtypes float32 --sentences 20 --seconds 0"
    PEERS="--only transformer_lens --size tiny --dtypes float32 --sentences 8 --rounds 1"
    AUTO="--size tiny,tiny-llama --sentences 12"
fi

install_wheels() {
    [ -d "$WHEELS" ] || return 0
    echo "installing the wheels of $WHEELS"
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$SCRATCH/site-packages" "$WHEELS"/*.whl ||
        return
    if [ -d "$SCRATCH/site-packages/transformer_lens" ]; then # peers have environments of their own; here it is the one there is
        local place=$SCRATCH/peers/transformer_lens
        mkdir -p "$place/bin"
        printf '#!/bin/sh\nexec "%s" "$@"\n' "$(command -v "$PYTHON")" >"$place/bin/python"
        chmod +x "$place/bin/python"
        touch "$place/ready"
    fi
}

# The parts. Their options are lists of words.
# shellcheck disable=SC2086
tests() {
    local name
    name=tests-${TEST_DEVICE/cuda/gpu}-$(date +%F).md
    {
        printf '# Tests\n\n`pytest -m gpu`, TEST_DEVICE=%s, %s\n\n```\n' "$TEST_DEVICE" "$(date +%F)"
        "$PYTHON" -m pytest -m gpu -q -rfE --tb=short --durations=10 -p no:cacheprovider $TESTS 2>&1
        local status=$?
        printf '```\n'
        exit $status
    } | tee -i "$BENCHMARK_RESULTS/$name"
}
lens() { "$PYTHON" -m benchmarks.lens $LENS --save; }
attention() { "$PYTHON" -m benchmarks.attention $ATTENTION --save; }
end_to_end() { "$PYTHON" -m benchmarks.end_to_end $END_TO_END --save; }
peers() { "$PYTHON" -m benchmarks.peers $PEERS --environments "$SCRATCH/peers" --save; }
auto() { "$PYTHON" -m benchmarks.auto_batches $AUTO --save; }
export -f tests lens attention end_to_end peers auto

failed=
run_part() {
    local began=$SECONDS status=0 ended=done
    printf '\n=== %s: at most %s s; %s s since the start\n' "$1" "${LIMIT[$1]}" "$SECONDS"
    # INT first: pytest then still says what has failed until then
    timeout -s INT -k 10 "${LIMIT[$1]}" bash -o pipefail -c "$1" || status=$?
    case $status in
        0) ;;
        124 | 137) ended="cut short after ${LIMIT[$1]} s" ;;
        *) ended="ended with status $status" ;;
    esac
    printf '=== %s: %s; %s s\n' "$1" "$ended" $((SECONDS - began))
    [ $status = 0 ] || failed+="  $1: $ended"$'\n'
}

# What is not installed has a version all the same, which the program asks for.
describe_program() {
    "$PYTHON" -c 'from importlib.metadata import version; version("llm_entropy")' 2>/dev/null && return
    local about=$SCRATCH/site-packages/llm_entropy-0.dist-info
    mkdir -p "$about"
    printf 'Metadata-Version: 2.1\nName: llm-entropy\nVersion: %s\n' "$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" >"$about/METADATA"
}

describe_program
install_wheels || echo "the wheels could not be installed: what needs them will fail" >&2
if [ -z "$TINY" ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch sees no GPU here; benchmarks/gpu.sh --tiny tries every part on a CPU" >&2
    exit 1
fi
for each in $PARTS; do run_part "$each"; done
printf '\n=== all parts: %s s; the tables are in %s\n' "$SECONDS" "$BENCHMARK_RESULTS"
if [ -n "$failed" ]; then
    printf 'not complete:\n%s' "$failed"
    exit 1
fi
