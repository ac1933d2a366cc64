#!/usr/bin/env bash
# A training run on a Cloud TPU, one command a step; docs/cloud_tpu.md explains every step.
set -euo pipefail

usage() {
  cat <<'END'
scripts/tpu.sh [--dry-run] STEP NAME [ARGUMENT …]

  create NAME             requests a TPU slice of that name; Google creates it when it has room
  status NAME             prints the state of the request: ACTIVE when the slice can be used,
                          SUSPENDED when Google has taken it back
  install NAME            copies the last commit to all hosts of the slice, and installs it there
  launch NAME FLAG …      starts `python -m vit_jax.main --distributed FLAG …` on all hosts
  logs NAME [LINES]       shows the end of the first host's log
  stop NAME               ends the run; the same `launch` continues from its last checkpoint
  fetch NAME FROM TO      copies a folder to this machine, from gs:// or from the first host
  delete NAME             gives the slice back: until then you pay for it

--dry-run prints the commands instead of running them, and needs no gcloud.

Settings, from environment variables:
  PROJECT   the project of Google Cloud; default: gcloud's own
  ZONE      default: us-central1-a
  TYPE      kind and size of the slice, such as v4-32 or v6e-8; default: v5litepod-16
  VERSION   the image of the hosts; default: the one for TYPE
  SPOT      1 for a slice that is cheaper and that Google may take back at any time
  BUCKET    the name of a bucket, which `install` mounts on all hosts as ~/bucket
END
}

fail() {
  echo "$1" >&2
  exit 1
}

# Prints a command with a shell's quoting, and runs it unless this is a dry run.
run() {
  printf '%s' "$1"
  printf ' %q' "${@:2}"
  printf '\n'
  if [[ -z $dry_run ]]; then "$@"; fi
}

# Prints arguments as one string, which a remote shell splits into the same arguments.
quoted() {
  printf ' %q' "$@"
}

# Runs a command on one host or on all.
on_host() { # host's number or "all", command
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

image() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) fail "There is no image known for $1: set VERSION." ;;
  esac
}

create() {
  local type=${TYPE:-v5litepod-16} version
  version=${VERSION:-$(image "$type")}
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id="$name" \
    --accelerator-type="$type" --runtime-version="$version" ${SPOT:+--spot}
}

install() {
  local repository folder
  repository=$(dirname "${BASH_SOURCE[0]}")/..
  if [[ -n $(git -C "$repository" status --porcelain) ]]; then
    echo "Changes that are not committed are not copied." >&2
  fi
  folder=${TMPDIR:-/tmp}
  if [[ -z $dry_run ]]; then
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # expanded now, while the variable exists
    trap "rm -rf $(quoted "$folder")" EXIT
  fi
  run git -C "$repository" archive --format=tar.gz --output="$folder/vit_jax.tar.gz" HEAD
  run gcloud compute tpus tpu-vm scp "$folder/vit_jax.tar.gz" "$name:" "${where[@]}" --worker=all
  on_host all "$(
    cat <<'END'
set -e
mkdir -p ~/vit_jax
tar -xzf ~/vit_jax.tar.gz -C ~/vit_jax
cd ~/vit_jax
python3 -m pip install -q --user uv
[ -d .venv ] || python3 -m uv venv -q --seed --python 3.12 .venv
.venv/bin/pip install -q -e '.[tpu,gcs]'
END
  )"
  if [[ -n ${BUCKET:-} ]]; then
    on_host all "bucket=$(printf %q "$BUCKET")
$(
      cat <<'END'
set -e
if ! command -v gcsfuse > /dev/null; then
  packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsS $packages/doc/apt-key.gpg | sudo tee $key > /dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
  sudo apt-get -o DPkg::Lock::Timeout=300 -qq update
  sudo apt-get -o DPkg::Lock::Timeout=300 -qq install -y gcsfuse
fi
mkdir -p ~/bucket
mountpoint -q ~/bucket || gcsfuse --implicit-dirs "$bucket" ~/bucket
END
    )"
  fi
}

launch() {
  [[ $# -gt 0 ]] || fail "launch NAME --config=FILE --workdir=gs://BUCKET/PATH …"
  on_host all "$(
    cat <<'END'
cd ~/vit_jax || exit 1
if [ -f ~/run.pid ] && kill -0 "$(cat ~/run.pid)" 2> /dev/null; then
  echo 'A run is going on here: stop it first.' >&2
  exit 1
fi
END
  )
nohup .venv/bin/python -m vit_jax.main --distributed$(quoted "$@") >> ~/run.log 2>&1 < /dev/null &
echo \$! > ~/run.pid"
}

logs() {
  # Progress bars end their lines with carriage returns.
  on_host 0 "tail -c 100000 ~/run.log | tr '\\r' '\\n' | tail -n$(quoted "${1:-30}")"
}

stop() {
  # Hosts save a checkpoint first, which takes a while. If a host is gone, the others would wait for
  # it for ever: after five minutes they are killed.
  on_host all "$(
    cat <<'END'
pid=$(cat ~/run.pid) && kill -TERM "$pid" || exit
timeout 300 tail --pid="$pid" -f /dev/null || kill -KILL "$pid"
END
  )"
}

fetch() {
  [[ $# -eq 2 ]] || fail "fetch NAME FROM TO"
  if [[ $1 == gs://* ]]; then
    run mkdir -p "$2"
    run gcloud storage rsync --recursive "$1" "$2" ${PROJECT:+--project="$PROJECT"}
  else
    run gcloud compute tpus tpu-vm scp --recurse "$name:$1" "$2" "${where[@]}" --worker=0
  fi
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
case ${1:-} in
  create | status | install | launch | logs | stop | fetch | delete) ;;
  -h | --help) usage && exit ;;
  *) usage >&2 && exit 2 ;;
esac
step=$1
name=${2:-}
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
  fail "$step needs the slice's NAME: small letters, digits and hyphens, a letter first."
[[ -n $dry_run ]] || command -v gcloud > /dev/null ||
  fail "There is no gcloud: https://cloud.google.com/sdk/docs/install explains how to install it."
where=(--zone="${ZONE:-us-central1-a}" ${PROJECT:+--project="$PROJECT"})
shift 2
case $step in
  status)
    run gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
      --format='value(state.state)'
    ;;
  delete)
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
    ;;
  *) "$step" "$@" ;;
esac
