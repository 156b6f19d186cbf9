#!/usr/bin/env bash
# Makes this machine able to build Darter, test it and run the demo: installs what is missing from Debian's packages
# and checks the rest. Starts no service, changes nothing that is there already, says nothing if nothing is missing.
# Arguments name what else is needed, as PROGRAM:PACKAGE.
set -euo pipefail

readonly KERNEL_MIN=6.12
# The harness runs Debian's programs, so that is where to look for them.
readonly DEBIAN_PATH=/usr/sbin:/usr/bin:/sbin:/bin
# program that must be there : package that brings it
readonly NEEDED=(
  gcc:gcc make:make pkg-config:pkg-config protoc:protobuf-compiler
  containerd:containerd ctr:containerd runc:runc dockerd:docker.io docker:docker-cli docker-registry:docker-registry
  skopeo:skopeo podman:podman buildah:buildah curl:curl wget:wget openssl:openssl
  ip:iproute2 update-ca-certificates:ca-certificates
)
# The same for what is no program.
readonly NEEDED_FILES=(/usr/include/stdio.h:libc6-dev /usr/share/doc/busybox-static:busybox-static)

fail() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

missing_packages() {
  local entry
  for entry in "${NEEDED[@]}" "$@"; do
    PATH=$DEBIAN_PATH command -v "${entry%%:*}" >/dev/null || echo "${entry##*:}"
  done
  for entry in "${NEEDED_FILES[@]}"; do
    [[ -e ${entry%%:*} ]] || echo "${entry##*:}"
  done
}

# Debian 12 has the docker command in docker.io itself.
known_to_apt() {
  local package
  for package in "$@"; do
    if [[ $package == docker-cli ]] && ! apt-cache show --quiet=2 docker-cli >/dev/null 2>&1; then
      package=docker.io
    fi
    echo "$package"
  done | sort -u
}

# Debian's packages start their services when they are installed, unless this file forbids it.
forbid_services() {
  local policy=/usr/sbin/policy-rc.d
  [[ -e $policy ]] && return
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
}

install_packages() {
  local log packages
  log=$(mktemp)
  echo "setup: reading Debian's package lists"
  apt-get -q update >"$log" 2>&1 || fail "apt-get update failed:" "$(tail -n 20 "$log")"
  mapfile -t packages < <(known_to_apt "$@")
  echo "setup: installing ${packages[*]}"
  forbid_services
  DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "${packages[@]}" >"$log" 2>&1 ||
    fail "apt-get install failed:" "$(tail -n 20 "$log")"
  rm -f "$log"
}

check_kernel() {
  local release oldest filesystem
  release=$(uname -r)
  oldest=$(printf '%s\n%s\n' "$KERNEL_MIN" "${release%%-*}" | sort -V | head -n 1)
  [[ $oldest == "$KERNEL_MIN" ]] ||
    fail "Linux $release is too old: $KERNEL_MIN or later is needed, to mount EROFS from a file (on Debian 12 it is in backports)."
  for filesystem in erofs fuse overlay; do
    grep -qw "$filesystem" /proc/filesystems || modprobe "$filesystem" 2>/dev/null ||
      fail "This kernel has no $filesystem: boot one with CONFIG_${filesystem^^}_FS."
  done
  [[ -c /dev/fuse ]] || fail "/dev/fuse is missing: in a container, start it with --device /dev/fuse or --privileged."
}

check_rust() {
  command -v cargo >/dev/null || fail "Rust is missing: install it with rustup (https://rustup.rs), then run this again."
  cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 ||
    fail "rustfmt or clippy is missing: rustup component add rustfmt clippy"
  if ! cargo nextest --version >/dev/null 2>&1; then
    echo "setup: installing cargo-nextest, which runs the tests"
    cargo install --quiet --locked cargo-nextest
  fi
}

main() {
  [[ $(id -u) == 0 ]] || fail "Root is needed: the tests mount file systems and run containers."
  command -v apt-get >/dev/null || fail "apt-get is missing: Debian 12 or later is needed."
  check_kernel
  local missing
  mapfile -t missing < <(missing_packages "$@")
  if ((${#missing[@]})); then install_packages "${missing[@]}"; fi
  check_rust
}

main "$@"
