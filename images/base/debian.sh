#!/bin/sh
# Make the base system microstages/base-os from Debian's packages, for machines that reach no image registry.
#
#     images/base/debian.sh            needs root, a Debian mirror, and a Docker engine
#
# Debian 12 with Python 3.11, venv and CA certificates: debootstrap's smallest variant, without package lists, caches,
# manuals and translations; licence texts stay. Does nothing where the image of this very recipe is there.
#
# MIRROR  Debian mirror (default: the first one in this machine's apt configuration, else debootstrap's)
# DOCKER  the client to import with (default: docker)
set -eu

SUITE=bookworm
PACKAGES=python3,python3-venv,ca-certificates
IMAGE=microstages/base-os:bookworm
DOCKER=${DOCKER:-docker}

fail() {
    printf 'debian.sh: error: %s\n  %s\n' "$1" "$2" >&2
    exit 2
}

recipe=$(sha256sum "$0" | cut -c1-64)
"$DOCKER" version --format '{{.Server.Version}}' > /dev/null 2>&1 ||
    fail "no Docker engine answers" "start dockerd, or point DOCKER_HOST to an engine"
have=$("$DOCKER" image inspect --format '{{index .Config.Labels "microstages.recipe"}}' "$IMAGE" 2> /dev/null || true)
if [ "$have" = "$recipe" ]; then
    echo "$IMAGE is there"
    exit 0
fi
[ "$(id -u)" = 0 ] || fail "debootstrap needs root" "run as root, or build on an image: make images BASE=IMAGE"

place=$(mktemp -d)
trap 'rm -rf --one-file-system "$place"' EXIT
trap 'exit 143' INT TERM

# The tool and the archive's keys, unpacked beside the system where it does not have them.
unpack() {
    (cd "$place" && apt-get -qq download "$1" > /dev/null && dpkg-deb -x "$1"_*.deb helpers) ||
        fail "cannot fetch the package $1" "install it: apt-get install $1"
}
tool=$(command -v debootstrap || true)
if [ -z "$tool" ]; then
    unpack debootstrap
    tool=$place/helpers/usr/sbin/debootstrap
    export DEBOOTSTRAP_DIR="$place/helpers/usr/share/debootstrap"
fi
keys=/usr/share/keyrings/debian-archive-keyring.gpg
if [ ! -f "$keys" ]; then
    unpack debian-archive-keyring
    keys=$place/helpers$keys
fi
mirror=${MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.* 2> /dev/null |
    sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\(http[^ ]*\/debian\/\{0,1\}\) .*/\2/p' | head -n 1)}

echo "$IMAGE: Debian $SUITE from packages (some minutes)"
if ! "$tool" --variant=minbase --keyring="$keys" --include="$PACKAGES" "$SUITE" "$place/root" ${mirror:+"$mirror"} \
    > "$place/log" 2>&1; then
    tail -n 5 "$place/log" >&2
    fail "debootstrap failed" "see the lines above; another mirror: MIRROR=URL"
fi

cd "$place/root"
rm -rf var/lib/apt/lists/* var/cache/* var/log/* tmp/* usr/share/man usr/share/info usr/share/locale usr/share/lintian
find usr/share/doc -type f ! -name copyright -delete
find usr/share/doc -type l ! -name copyright -delete
find usr/share/doc -type d -empty -delete
find . -xdev -name __pycache__ -type d -prune -exec rm -rf {} +
rm -f etc/resolv.conf etc/hostname etc/machine-id
# what apt installs on top later leaves no manuals and no caches either
printf 'path-exclude /usr/share/doc/*\npath-include /usr/share/doc/*/copyright\npath-exclude /usr/share/man/*\n%s\n' \
    'path-exclude /usr/share/locale/*' > etc/dpkg/dpkg.cfg.d/slim
printf 'APT::Install-Recommends "false";\nDir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n' \
    > etc/apt/apt.conf.d/90slim
tar --numeric-owner --sort=name --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* -cf - . |
    "$DOCKER" import --change "LABEL microstages.recipe=$recipe" --change 'CMD ["python3"]' - "$IMAGE" > /dev/null
echo "$IMAGE made: $("$DOCKER" image inspect --format '{{.Size}}' "$IMAGE" | awk '{printf "%d MB", $1 / 1e6}')"
