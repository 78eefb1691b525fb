#!/usr/bin/env bash
# Submit an array, and a merge that waits for it. Called again with the same words, it submits only what is missing.
#
#   slurm/submit_array.sh NUM_TASKS RUN_DIR [options of sbatch] -- [options of llm-entropy predict]
#   slurm/submit_array.sh 16 analysis_outputs/my-run --gpus-per-node=1 --time=4:00:00 -- \
#       --config configs/comparative.yaml --data.path corpus.jsonl --num-sentences null
#
# NUM_TASKS is the number of tasks; it stays the same for a run. --array is not needed among the options of sbatch: for at
# most 8 tasks at once set MAX_TASKS=8. The options of sbatch go to the array. Both array and merge read SBATCH_* variables
# (SBATCH_PARTITION, SBATCH_ACCOUNT, ...).
# If a task is killed, SLURM removes the merge. Then call this script again: queued and running tasks stay, lost tasks
# are submitted, and a merge that waits for all of them. RUN_DIR must be on a file system that all nodes share.
set -euo pipefail

fail() { # what is wrong
    echo "submit_array.sh: $1; see the top of ${BASH_SOURCE[0]}" >&2
    exit 2
}

[ $# -ge 3 ] || fail "got $# words; expected NUM_TASKS RUN_DIR [options of sbatch] -- [options of predict]"
num_tasks="$1" run_dir="${2%/}"
shift 2
[[ "$num_tasks" =~ ^[1-9][0-9]*$ ]] || fail "NUM_TASKS: got '$num_tasks'; expected a number from 1 on"
sbatch_options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    sbatch_options+=("$1")
    shift
done
[ $# -gt 0 ] || fail "there is no -- before the options of llm-entropy predict"
shift

program="${LLM_ENTROPY:-llm-entropy}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
name="$(basename "$run_dir")"

missing="0-$((num_tasks - 1))"
if [ -e "$run_dir/run.json" ]; then
    grep -q "^  \"num_shards\": $num_tasks,\$" "$run_dir/run.json" ||
        fail "$run_dir was started with another number of tasks than $num_tasks: $(grep '^  "num_shards"' "$run_dir/run.json")"
    missing="$("$program" status "$run_dir" --missing)" || [ $? -eq 1 ]
fi

# Tasks of this run that are queued or running are left alone.
queued=" $(squeue --noheader --array --me --name="$name" --format=%K | tr '\n' ' ') "
jobs="$(squeue --noheader --me --name="$name" --format=%F | sort -u | paste -sd: -)"
lost=()
while read -r task; do
    [[ "$queued" == *" $task "* ]] || lost+=("$task")
done < <(tr , '\n' <<<"$missing" | awk -F- 'NF { for (i = $1; i <= $NF; i++) print i }')

if [ ${#lost[@]} -gt 0 ]; then
    tasks="$(IFS=, && echo "${lost[*]}")${MAX_TASKS:+%$MAX_TASKS}"
    array="$(NUM_TASKS="$num_tasks" sbatch --parsable --job-name="$name" --array="$tasks" "${sbatch_options[@]}" \
        "$here/array.sbatch" --output.dir "$(dirname "$run_dir")" --output.run_name "$name" "$@")"
    array="${array%%;*}"
    jobs="${jobs:+$jobs:}$array"
    echo "array $array: tasks $tasks of $num_tasks"
fi

scancel --quiet --me --state=PENDING --name="$name-merge" || true # one that waits for tasks that are gone
merge="$(sbatch --parsable --job-name="$name-merge" ${jobs:+--dependency="afterok:$jobs" --kill-on-invalid-dep=yes} \
    "$here/merge.sbatch" "$run_dir")"
echo "merge ${merge%%;*}: ${jobs:+behind ${jobs//:/, }}"
