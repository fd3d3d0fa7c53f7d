# For the build scripts: sets `engine` to docker, podman or buildah, whichever works here, or ends with exit code 3.

find_engine() {
    # Docker's client may be installed where its daemon does not run; buildah needs none.
    for name in docker podman; do
        if "$name" info >/dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    command -v buildah
}

if ! engine=${ENGINE:-$(find_engine)}; then
    echo "error: neither docker, podman nor buildah works here" >&2
    echo "hint: install one of them and start its service, or name it with ENGINE=" >&2
    exit 3
fi
