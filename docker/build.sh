#!/usr/bin/env bash
# Build an image of docker/Dockerfile.gpu with docker, podman or buildah, whichever is there.
#
#   docker/build.sh [rtx|tensorrt] [OPTION…]     OPTIONs go to the engine's build command
#
# ENGINE (docker, podman, buildah), BASE (another base image), EXTRAS ("cuda rtx torch") and NVIDIA_INDEX (target tensorrt)
# are taken from the environment.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-rtx}
case $target in
rtx | tensorrt) ;;
*)
    echo "error: there is no target $target" >&2
    echo "hint: docker/build.sh rtx, or docker/build.sh tensorrt" >&2
    exit 2
    ;;
esac

. docker/engine.sh

arguments=(build --file docker/Dockerfile.gpu --target "$target" --tag "relu-deploy:$target")
# OCI images, which these two make by default, have no health check.
case ${engine##*/} in podman | buildah) arguments+=(--format docker) ;; esac
for name in BASE EXTRAS NVIDIA_INDEX; do
    if [ -n "${!name:-}" ]; then arguments+=(--build-arg "$name=${!name}"); fi
done
exec "$engine" "${arguments[@]}" "${@:2}" .
