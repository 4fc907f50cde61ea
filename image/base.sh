#!/usr/bin/env bash
# Makes a base image for the agent image on a machine that has no image registry, from the Debian archive.
#
#   bash image/base.sh TAG [docker|podman]
#
# Needs root and the package mmdebstrap. The root folder is kept as a tar file in ${HERMITCRAB_CACHE:-.cache}, so that
# a second engine, or a second run, only imports it. Who has a registry needs none of this: `crab image build`
# begins from an official Python image.
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:?usage: bash image/base.sh TAG [docker|podman]}
engine=${2:-docker}
cache=${HERMITCRAB_CACHE:-.cache}
suite=bookworm
# What an agent's tools expect of any machine. util-linux is there for prlimit, mount and friends in tests.
packages=python3,python3-venv,python3-pip,ca-certificates,git,util-linux,procps,curl

case $engine in
docker | podman) ;;
*)
    echo "image/base.sh: '$engine' is not an engine; docker or podman" >&2
    exit 2
    ;;
esac

tar=$cache/base.tar
recipe="$suite $packages"
if [ ! -s "$tar" ] || [ "$(cat "$tar.recipe" 2>/dev/null)" != "$recipe" ]; then
    command -v mmdebstrap >/dev/null || {
        echo "image/base.sh: mmdebstrap is missing; apt-get install mmdebstrap debian-archive-keyring" >&2
        exit 2
    }
    mkdir -p "$cache"
    echo "==> Making a $suite root folder" >&2
    # A name of its own until it is whole: a run that was cut off must not leave a half tar for the next one.
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        "$suite" "$tar.making.tar" >&2
    mv "$tar.making.tar" "$tar"
    printf '%s' "$recipe" >"$tar.recipe"
fi

echo "==> Importing it into $engine as $tag" >&2
"$engine" import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' "$tar" "$tag" >/dev/null
