#!/usr/bin/env bash
# Build the image of docker/Dockerfile with docker, podman or buildah, whichever is there; with a bundle, serve it from the
# image as its user would, and check that it answers.
#
#   docker/build_cpu.sh [BUNDLE] [OPTION…]       OPTIONs go to the engine's build command
#
# ENGINE (docker, podman, buildah), BASE (another base image), EXTRAS ("cpu serve") and PORT (8000, of the check with buildah)
# are taken from the environment. BASE=debootstrap makes a base of Debian's own packages, where no image can be pulled
# (buildah and debootstrap, as root). CONTEXT=DIR builds what `relu-deploy package --for docker -o DIR` wrote instead.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bundle=
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    if ! bundle=$(realpath -e "$1"); then
        echo "hint: make the bundle with relu-deploy export digits -o $1" >&2
        exit 2
    fi
    shift
fi
if [ -n "${CONTEXT:-}" ]; then
    tag=relu-deploy:package
    cd "$CONTEXT"
    arguments=(--file Dockerfile)
else
    tag=relu-deploy:cpu
    cd "$here/.."
    arguments=(--file docker/Dockerfile)
fi

. "$here/engine.sh"
kind=${engine##*/}

scratch=$(mktemp -d)
container=
server=
clean() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    if [ -n "$container" ]; then "$engine" rm -f "$container" >/dev/null 2>&1 || "$engine" rm "$container" >/dev/null 2>&1 || true; fi
    rm -rf "$scratch"
}
trap clean EXIT

bootstrap() {
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$scratch/root" >"$scratch/log" 2>&1 || {
        tail -n 20 "$scratch/log" >&2
        exit 3
    }
    rm -rf "$scratch/root"/var/cache/apt/* "$scratch/root"/var/lib/apt/lists/* "$scratch/root"/usr/share/{doc,man,locale}/*
    tar -C "$scratch/root" --exclude='./dev/*' -cf "$scratch/root.tar" .
    rm -rf "$scratch/root"
    container=$("$engine" from scratch)
    "$engine" add -q "$container" "$scratch/root.tar" / >/dev/null
    "$engine" config --cmd python3 "$container"
    "$engine" commit -q --rm "$container" localhost/relu-deploy-base >/dev/null
    container=
    rm "$scratch/root.tar"
}

if [ "${BASE:-}" = debootstrap ]; then
    bootstrap
    BASE=localhost/relu-deploy-base
fi
arguments+=(--tag "$tag")
# OCI images, which these two make by default, have no health check.
case $kind in podman | buildah) arguments+=(--format docker) ;; esac
for name in BASE EXTRAS; do
    if [ -n "${!name:-}" ]; then arguments+=(--build-arg "$name=${!name}"); fi
done
"$engine" build "${arguments[@]}" "$@" .

size() {
    if [ "$kind" = buildah ]; then
        "$engine" images --format '{{.Size}}' "$tag"
    else
        "$engine" image inspect --format '{{.Size}}' "$tag"
    fi
}
echo "$tag: $(size)"
if [ -z "$bundle" ] && [ -z "${CONTEXT:-}" ]; then exit; fi

served=(serve "/models/$(basename "${bundle:-none}")" --host 0.0.0.0)
if [ "$kind" = buildah ]; then
    # It runs no entry point or health check by itself: what the image says is read and run.
    container=$("$engine" from "$tag")
    inspect() { "$engine" inspect --format "$1" "$container"; }
    mapfile -t entry < <(inspect '{{range .Docker.Config.Entrypoint}}{{println .}}{{end}}' | sed '/^$/d')
    mapfile -t health < <(inspect '{{range .Docker.Config.Healthcheck.Test}}{{println .}}{{end}}' | sed '/^$/d')
    if [ -z "$bundle" ]; then
        mapfile -t served < <(inspect '{{range .Docker.Config.Cmd}}{{println .}}{{end}}' | sed '/^$/d')
    fi
    port=${PORT:-8000}
    more=()
    if [ -n "$bundle" ]; then more+=(--volume "$bundle:/models/$(basename "$bundle"):ro"); fi
    if [ "$port" != 8000 ]; then served+=(--http-port "$port" --grpc-port 0 --metrics-port 0); fi
    user=$("$engine" run "$container" -- id -u)
    if python3 "$here/ready.py" "$port" 2>/dev/null; then
        echo "error: another server already answers on port $port" >&2
        echo "hint: stop it, or name another port with PORT=" >&2
        exit 2
    fi
    "$engine" run "${more[@]}" "$container" -- "${entry[@]}" "${served[@]}" >"$scratch/server" 2>&1 &
    server=$!
    python3 "$here/check_serving.py" "$port" || {
        cat "$scratch/server" >&2
        exit 1
    }
    # CMD is the first word of a health check, and 8000 the port that it asks.
    if [ "$port" = 8000 ]; then
        "$engine" run "$container" -- "${health[@]:1}"
        echo "healthy, as the image checks it"
    fi
else
    more=()
    if [ -n "$bundle" ]; then more+=(--volume "$bundle:/models/$(basename "$bundle"):ro"); else served=(); fi
    container=$("$engine" run --detach --read-only --tmpfs /tmp --publish 127.0.0.1::8000 "${more[@]}" "$tag" "${served[@]}")
    port=$("$engine" port "$container" 8000/tcp | head -n 1)
    port=${port##*:}
    user=$("$engine" exec "$container" id -u)
    python3 "$here/check_serving.py" "$port"
fi
if [ "$user" = 0 ]; then
    echo "error: $tag runs as root" >&2
    exit 1
fi
echo "$tag serves as user $user, and answered"
