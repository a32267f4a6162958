#!/usr/bin/env bash
# Trains on the GPU for so many minutes, as one command that may be given again to go on:
#
#   bash scripts/train_gpu.sh --config configs/hcanet-bra_2.yaml --minutes 25 \
#       --data.root data/cave --output runs/gpu [any option of `hsidenoise train`]
#
# --minutes is the time of this call, final validation included. If $OUTPUT holds a run, it goes on where that stopped
# (exactly: weights, average, optimiser, order of the data). The learning rate falls to its end with the minutes; to
# plan several calls as one run, add its whole time to each: --trainer.max_time 00:01:30:00 (days:hours:minutes:seconds).
#
# Leaves in the output's folder: weights.safetensors (the best average), checkpoints/last.ckpt (at most five minutes
# old, --checkpoint_minutes) and best.ckpt, csv/ and TensorBoard curves with speed/patches_per_second and waited_share;
# prints these for the whole call at its end.
#
# What it adds to `hsidenoise train`, unless the command line says otherwise: bfloat16 mixed precision, TF32 for the
# rest, torch.compile where a short measurement finds it faster (from 10 minutes on; before, compiling would not pay),
# a worker per core but one, no end by epochs. Without a GPU it says so and trains on the CPU.
#
# Where nothing can be installed (a lent GPU machine): the interpreter is python3 or what HSIDENOISE_PYTHON names, if
# .venv is not there; it needs the dependencies in pyproject.toml. What it lacks travels as wheels: on a machine with
# pip, in the project's folder (`echo /.whl/ >> .git/info/exclude` first),
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \
#       jsonargparse docstring-parser typeshed-client importlib-resources
# and there, before this script,
#   python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site
# Cubes travel in a folder of the project that git ignores (data/cubes/, say). If only small files come back, cut the
# checkpoint: `split -b 15M runs/gpu/checkpoints/last.ckpt $OUT/last.ckpt.`, and join it with cat to go on.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
WORKERS_AT_MOST=15 # more would wait for the GPU; measured: 200 patches of 31x96x96 a second and core, noise included

has_packages() { # looks for them only: to load them takes seconds
    "$1" -c 'import sys; from importlib.util import find_spec; sys.exit(None in map(find_spec, sys.argv[1:]))' \
        torch lightning jsonargparse safetensors jaxtyping tensorboard 2> /dev/null
}

find_interpreter() {
    local candidate
    for candidate in "${HSIDENOISE_PYTHON:-}" "$ROOT/.venv/bin/python" python3; do
        if [[ -n "$candidate" ]] && has_packages "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "train_gpu: no Python with torch, lightning and jsonargparse; run scripts/setup.sh, or see the head of this file" >&2
    return 1
}

says() { # whether the command line sets an option itself
    local option="$1" word
    shift
    for word in "$@"; do
        if [[ "$word" == "$option" || "$word" == "$option="* ]]; then return 0; fi
    done
    return 1
}

value_of() {
    local option="$1" before="" word
    shift
    for word in "$@"; do
        if [[ "$before" == "$option" ]]; then echo "$word"; elif [[ "$word" == "$option="* ]]; then echo "${word#*=}"; fi
        before="$word"
    done
}

main() {
    local python cores minutes options=()
    if ! says --minutes "$@" || ! says --output "$@"; then
        echo "train_gpu: --minutes (of this call) and --output (folder of the run) are needed" >&2
        return 2
    fi
    python="$(find_interpreter)"
    cores="$(nproc)"
    minutes="$(value_of --minutes "$@" | tail -n 1)"
    says --resume "$@" || options+=(--resume auto)
    says --trainer.max_epochs "$@" || options+=(--trainer.max_epochs -1)
    says --trainer.enable_progress_bar "$@" || options+=(--trainer.enable_progress_bar false)
    says --data.workers "$@" ||
        options+=(--data.workers "$((cores - 1 < WORKERS_AT_MOST ? cores - 1 : WORKERS_AT_MOST))")
    if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        says --trainer.accelerator "$@" || options+=(--trainer.accelerator gpu)
        says --trainer.devices "$@" || options+=(--trainer.devices 1)
        says --trainer.precision "$@" || options+=(--trainer.precision bf16-mixed)
        if ! says --model.compile "$@" && awk "BEGIN { exit !($minutes >= 10) }"; then
            options+=(--model.compile auto)
        fi
    else
        echo "train_gpu: no CUDA device found: training on the CPU" >&2
        says --trainer.accelerator "$@" || options+=(--trainer.accelerator cpu)
    fi
    # behind the call's own: a configuration file would undo what stands before it
    PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m hsidenoise train "$@" "${options[@]}"
}

main "$@"
