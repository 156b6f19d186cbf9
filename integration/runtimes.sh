#!/usr/bin/env bash
# Brings newer container runtimes than this Debian has, out of later Debian releases, into directories of their own:
# DIRECTORY/SUITE/bin. Nothing on the machine is replaced. Used by `make test-runtimes`.
set -euo pipefail

readonly DIRECTORY=${1:?usage: runtimes.sh DIRECTORY SUITE...}
shift
readonly PACKAGES=(containerd runc docker.io docker-cli libc6 libseccomp2)

# Where this machine gets Debian from.
mirror() {
  apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' |
    awk '$1 == "Debian" && $2 == "Debian" { print $3; exit }'
}

# apt with lists, state and cache of its own.
write_apt_config() {
  local suite=$1 dir=$2
  mkdir -p "$dir"/{lists/partial,cache/archives/partial,state}
  : >"$dir/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(mirror) $suite main" >"$dir/sources.list"
  cat >"$dir/apt.conf" <<CONFIG
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$dir/state";
Dir::State::lists "$dir/lists";
Dir::State::status "$dir/status";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
CONFIG
}

# runc needs a newer libc than this machine has: it gets its own, and stands where the shim looks first.
patch_runc() {
  local files=$1 bin=$2
  local libraries=$files/usr/lib/x86_64-linux-gnu runc
  runc=$(readlink -f "$files/usr/sbin/runc")
  cp "$runc" "$bin/runc"
  patchelf --set-interpreter "$libraries/ld-linux-x86-64.so.2" --set-rpath "$libraries" "$bin/runc"
}

fetch() {
  local suite=$1 dir=$DIRECTORY/$1
  [[ -e $dir/ready ]] && return
  echo "runtimes: fetching ${PACKAGES[*]} of Debian $suite"
  rm -rf "$dir"
  mkdir -p "$dir"/{apt,debs,files,bin}
  write_apt_config "$suite" "$dir/apt"
  APT_CONFIG=$dir/apt/apt.conf apt-get -qq update
  (cd "$dir/debs" && APT_CONFIG=$dir/apt/apt.conf apt-get -qq download "${PACKAGES[@]}")
  local deb program
  for deb in "$dir"/debs/*.deb; do dpkg -x "$deb" "$dir/files"; done
  for program in "$dir"/files/usr/{s,}bin/{containerd*,ctr,docker*}; do
    [[ -e $program ]] && ln -sf "$program" "$dir/bin/"
  done
  patch_runc "$dir/files" "$dir/bin"
  rm -rf "$dir/debs" "$dir/apt"
  touch "$dir/ready"
}

for suite in "$@"; do fetch "$suite"; done
