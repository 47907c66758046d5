#!/usr/bin/env bash
# Everything that is to be measured on a machine with a GPU, in one go; a short table comes last.
#
#   OUT=gpu benchmarks/gpu_session.sh            needs uv and the data: DATA=<archive, folder or CSV>
#   DRY_RUN=1 OUT=/tmp/dry benchmarks/gpu_session.sh   drawn faces, one epoch, no GPU needed
#
# PARTS chooses among speed, scaling, accuracy, related; SEEDS is the number of seeds; SECONDS_LEFT
# ends it in time: what has not been started by then is left out and said so. The records lie in
# $OUT/results.tar.gz as results/benchmark_*.json and results/runs/*.json.
set -uo pipefail
cd "$(dirname "$0")/.."

: "${OUT:?name a folder for the records: OUT=PATH}"
PARTS=${PARTS:-speed scaling accuracy related}
SEEDS=${SEEDS:-5}
SECONDS_LEFT=${SECONDS_LEFT:-100000}
PYTHON=${PYTHON:-uv run --extra cuda12 python}
DATA=${DATA:-}
DRY_RUN=${DRY_RUN:-}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
scratch=$(mktemp -d) # only the archive goes to $OUT
trap 'rm -rf "$scratch"' EXIT
records=$scratch/results
mkdir -p "$records/runs"
failed=() left_out=()
repeats=3

launch() { # NAME FLAGS...: runs launch.py, keeps its output, goes on after a failure
  local name=$1
  shift
  if ((SECONDS > SECONDS_LEFT)); then
    left_out+=("$name")
    return 1
  fi
  printf '== %s (%d s)\n' "$name" "$SECONDS"
  if ! $PYTHON launch.py "$@" >"$records/$name.log" 2>&1; then
    failed+=("$name: $(tail -n 1 "$records/$name.log")")
    return 1
  fi
}

measure() { # NAME FILE FLAGS...: an entry NAME in the benchmark records
  local name=$1 file=$2
  shift 2
  launch "benchmark_$name" --config="experiments/$file.py" --config.experiment="$name" \
    --mode=benchmark --repeats="$repeats" --workdir="$records" "$@"
}

train() { # NAME FILE SEED FLAGS...: a record NAME_seedSEED in results/runs
  local name=$1 file=$2 seed=$3
  shift 3
  local run=$scratch/runs/${name}_seed$seed data=()
  [ -n "$DATA" ] && data=(--config.data.source="$DATA")
  [ -n "$DRY_RUN" ] && data=(--config.data.name=synthetic_faces --config.train.epochs=1)
  launch "${name}_seed$seed" --config="experiments/$file.py" --config.experiment="$name" \
    --config.seed="$seed" --workdir="$run" "$@" "${data[@]}" &&
    cp "$run/results.json" "$records/runs/${name}_seed$seed.json"
}

study="arch02_bs96 arch02_bs16 arch01 arch03"
batches="512 2048 4096 8192"
related="fathallah jindal moran fully_cnn mini_xception pcnn alexnet googlenet serengil resnet50 xception"
if [ -n "$DRY_RUN" ]; then
  study=arch02_bs96 batches=32 related=mini_xception SEEDS=1 repeats=1
fi

for part in $PARTS; do
  case $part in
    speed)
      for name in $study; do
        measure "$name" "$name"
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
    related)
      for name in $related; do
        train "$name" "$name" 0
      done
      ;;
    *) failed+=("no part $part; there are speed, scaling, accuracy, related") ;;
  esac
done

tar -C "$scratch" -czf "$OUT/results.tar.gz" results

$PYTHON - "$records" <<'PYTHON'
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
    print(f"{path.stem:34}{valid:8.4f}{test:8.4f}{seconds['train']:9.1f}{seconds['total']:9.1f}")
PYTHON
for line in "${failed[@]:-}"; do [ -n "$line" ] && echo "FAILED $line"; done
for line in "${left_out[@]:-}"; do [ -n "$line" ] && echo "LEFT OUT for lack of time: $line"; done
echo "Records: $OUT/results.tar.gz, after $SECONDS s"
[ -z "${failed[*]:-}" ]
