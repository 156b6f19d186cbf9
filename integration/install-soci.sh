#!/usr/bin/env bash
# Unpacks soci-snapshotter of Debian 13 (13, 'trixie', is the first that has it) into the directory that is named,
# without installing anything: its programs run on Debian 12 as they are. Says nothing if they are there already.
set -euo pipefail

readonly SUITE=trixie
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

main() {
  local dir=$1 codename mirror
  [[ -x $dir/usr/bin/soci-snapshotter-grpc || -x $dir/usr/sbin/soci-snapshotter-grpc ]] && return
  mkdir -p "$dir"/apt/{lists/partial,cache/archives/partial,state}
  # The same mirror as for everything else.
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-get indextargets --format '$(CODENAME) $(REPO_URI)' | awk -v name="$codename" '$1 == name { print $2; exit }')
  : >"$dir/apt/status"
  echo "deb [signed-by=$KEYRING] $mirror $SUITE main" >"$dir/apt/sources.list"
  cat >"$dir/apt/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$dir/apt/state";
Dir::State::lists "$dir/apt/lists";
Dir::State::status "$dir/apt/status";
Dir::Cache "$dir/apt/cache";
APT::Sandbox::User "root";
CONF
  export APT_CONFIG=$dir/apt/apt.conf
  echo "unpacking soci-snapshotter of Debian's $SUITE"
  apt-get -q=2 update
  (cd "$dir/apt" && apt-get -q=2 download soci-snapshotter)
  dpkg -x "$dir"/apt/soci-snapshotter_*.deb "$dir"
  rm -r "$dir/apt"
}

main "$@"
