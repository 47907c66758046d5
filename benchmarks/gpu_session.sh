#!/usr/bin/env bash
# Everything that is to be measured on a machine with a GPU, in one go; a short table comes last.
#
#   OUT=gpu benchmarks/gpu_session.sh            needs uv and the data: DATA=<archive, folder or CSV>
#   DRY_RUN=1 OUT=/tmp/dry benchmarks/gpu_session.sh   drawn faces, one epoch, no GPU needed
#
# PARTS chooses among speed, bfloat16, scaling, accuracy, strong, distilled, related and record; SEEDS
# is the number of seeds. Speed is measured with the GPU to itself; JOBS trainings share it, and the seconds
# in their records are of a shared GPU. SECONDS_LEFT ends it in time: what runs then is saved in RUNS
# and goes on when the same command is given again; what has not been started is named. FLAGS are
# added to every training of `strong` and `distilled`. The records lie in $OUT/results.tar.gz as
# results/benchmark_*.json and results/runs/*.json.
set -uo pipefail
cd "$(dirname "$0")/.."

: "${OUT:?name a folder for the records: OUT=PATH}"
PARTS=${PARTS:-speed bfloat16 scaling accuracy strong distilled related}
SEEDS=${SEEDS:-5}
JOBS=${JOBS:-1}
REPEATS=${REPEATS:-3}
SECONDS_LEFT=${SECONDS_LEFT:-100000}
PYTHON=${PYTHON:-uv run --extra cuda12 python}
DATA=${DATA:-}
DRY_RUN=${DRY_RUN:-}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
RUNS=${RUNS:-$scratch/runs}
results=$RUNS/results
mkdir -p "$results/runs"
: >"$scratch/failed" >"$scratch/left_out"
((JOBS > 1)) && export XLA_PYTHON_CLIENT_PREALLOCATE=false

launch() { # NAME FLAGS...: runs launch.py in the time that is left, and keeps its output
  local name=$1 left=$((SECONDS_LEFT - SECONDS)) status
  shift
  if ((left <= 0)); then
    echo "$name" >>"$scratch/left_out"
    return 1
  fi
  printf '== %s (%d s)\n' "$name" "$SECONDS"
  timeout "$left" $PYTHON launch.py "$@" >>"$results/$name.log" 2>&1
  status=$?
  case $status in
    0) ;;
    124 | 143) echo "$name, which has begun" >>"$scratch/left_out" ;;
    *) echo "$name: $(tail -n 1 "$results/$name.log")" >>"$scratch/failed" ;;
  esac
  return $status
}

measure() { # NAME FILE FLAGS...: an entry NAME in the benchmark records
  local name=$1 file=$2
  shift 2
  [ -s "$results/$name.measured" ] && return
  [ -n "$DRY_RUN" ] && set -- --config.train.batch_size=32 "$@"
  launch "benchmark_$name" --config="experiments/$file.py" --config.experiment="$name" \
    --mode=benchmark --nocpu --repeats="$REPEATS" --workdir="$results" "$@" &&
    date >"$results/$name.measured"
}

train() { # NAME FILE SEED FLAGS...: a record NAME_seedSEED in results/runs, beside other trainings
  while (($(jobs -rp | wc -l) >= JOBS)); do wait -n; done
  train_now "$@" &
}

train_now() {
  local name=$1 file=$2 seed=$3
  shift 3
  local run=$RUNS/${name}_seed$seed data=()
  [ -n "$DATA" ] && data=(--config.data.source="$DATA")
  [ -n "$DRY_RUN" ] && data=(--config.data.name=synthetic_faces --config.train.epochs=1
    --config.train.batch_size=32)
  [ -s "$results/runs/${name}_seed$seed.json" ] && return
  launch "${name}_seed$seed" --config="experiments/$file.py" --config.experiment="$name" \
    --config.seed="$seed" --workdir="$run" "$@" "${data[@]}" &&
    cp "$run/results.json" "$results/runs/${name}_seed$seed.json"
}

folders() { # NAME: the folders of its runs, as a flag's tuple
  local seed
  for ((seed = 0; seed < SEEDS; seed++)); do printf "'%s'," "$RUNS/$1_seed$seed"; done
}

are_done() { # NAME: waits for its runs; says whether all left a record
  local seed
  for ((seed = 0; seed < SEEDS; seed++)); do
    while [ ! -s "$results/runs/$1_seed$seed.json" ] && [ -n "$(jobs -rp)" ]; do wait -n; done
    [ -s "$results/runs/$1_seed$seed.json" ] || return 1
  done
}

study="arch02_bs96 arch02_bs16 arch01 arch03"
batches="512 2048 4096 8192"
related="fathallah jindal moran fully_cnn mini_xception pcnn alexnet googlenet serengil resnet50 xception"
related=${RELATED:-$related}
others="mini_xception_strong fully_cnn_strong"
if [ -n "$DRY_RUN" ]; then
  study=arch02_bs96 batches=32 related=mini_xception others= SEEDS=1 REPEATS=1
fi
read -ra flags <<<"${FLAGS:-}"

for part in $PARTS; do
  case $part in
    speed | bfloat16 | scaling) wait ;;& # for trainings
    speed)
      for name in $study compact; do measure "$name" "$name"; done
      ;;
    bfloat16)
      for name in $study compact; do
        measure "${name}_bfloat16" "$name" --config.model.dtype=bfloat16
      done
      ;;
    scaling)
      for batch in $batches; do
        measure "arch02_bs$batch" arch02_bs96 --config.train.batch_size="$batch"
        measure "arch02_bs${batch}_bfloat16" arch02_bs96 --config.train.batch_size="$batch" \
          --config.model.dtype=bfloat16
      done
      ;;
    accuracy)
      for ((seed = 0; seed < SEEDS; seed++)); do
        for name in $study; do
          train "$name" "$name" "$seed"
          train "${name}_bfloat16" "$name" "$seed" --config.model.dtype=bfloat16
        done
      done
      # A hundred epochs with validation after each.
      train arch02_bs96_100_epochs arch02_bs96 0 --config.train.epochs=100
      ;;
    strong)
      for ((seed = 0; seed < SEEDS; seed++)); do
        train compact compact "$seed" "${flags[@]}"
      done
      for ((seed = 0; seed < SEEDS && seed < 2; seed++)); do
        train arch03_strong arch03_strong "$seed" "${flags[@]}"
      done
      for name in $others; do
        train "$name" "$name" 0 "${flags[@]}"
      done
      ;;
    distilled)
      if are_done compact; then
        for ((seed = 0; seed < SEEDS && seed < 3; seed++)); do
          train compact_distilled compact_distilled "$seed" "${flags[@]}" \
            --config.train.teachers="($(folders compact))"
        done
        train compact_ensemble compact_ensemble 0 --config.ensemble.members="($(folders compact))"
      else
        echo "distilled: its teachers, compact, are not trained to the end" >>"$scratch/left_out"
      fi
      ;;
    related)
      for name in $related; do
        train "$name" "$name" 0
      done
      ;;
    record)
      for ((seed = 0; seed < SEEDS; seed++)); do
        train record record "$seed"
      done
      if are_done record; then
        train record_ensemble record 0 --config.ensemble.members="($(folders record))"
      fi
      ;;
    *)
      echo "no part $part; there are speed, bfloat16, scaling, accuracy, strong, distilled," \
        "related, record" >>"$scratch/failed"
      ;;
  esac
done
wait

tar -C "$RUNS" -czf "$OUT/results.tar.gz" results

$PYTHON - "$results" <<'PYTHON'
import json, pathlib, sys

folder = pathlib.Path(sys.argv[1])
print(f"\n{'speed':28}{'device':16}{'epoch s':>9}{'images/s':>11}{'share %':>9}")
for path in sorted(folder.glob("benchmark_*.json")):
    record = json.loads(path.read_text())
    for name, entry in record["entries"].items():
        run = sorted(entry["runs"], key=lambda r: r["resident"]["epoch_s"])[len(entry["runs"]) // 2]
        peak = run["matmul_flops_per_s"][entry["config"]["model"]["dtype"]]
        speed = run["resident"]["images_per_s"]
        share = 300 * entry["forward_flops_per_image"] * speed / peak
        device = record["device"]["kind"][:15]
        print(f"{name:28}{device:16}{run['resident']['epoch_s']:9.3f}{speed:11,.0f}{share:9.1f}")
print(f"\n{'accuracy':34}{'valid':>8}{'test':>8}{'train s':>9}{'total s':>9}")
for path in sorted((folder / "runs").glob("*.json")):
    run = json.loads(path.read_text())
    valid, test = (run["metrics"][split]["accuracy"] for split in ("valid", "test"))
    seconds = run["seconds"]
    train = seconds.get("train", 0.0)  # an ensemble trains nothing
    print(f"{path.stem:34}{valid:8.4f}{test:8.4f}{train:9.1f}{seconds['total']:9.1f}")
PYTHON
sed 's/^/FAILED /' "$scratch/failed"
sed 's/^/LEFT OUT for lack of time: /' "$scratch/left_out"
echo "Records: $OUT/results.tar.gz, after $SECONDS s"
[ ! -s "$scratch/failed" ]
