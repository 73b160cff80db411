#!/usr/bin/env bash
# Makes the tokens of tls.yaml, unless they are there. With arguments, as `bitacora token` takes them, makes one more and prints
# it; another one of that name is good for nothing from then on.
set -euo pipefail
umask 077

tokens=/tokens/tokens
# The users that nodes and Prometheus run as.
node=10001 prometheus=65534

# A token, which its owner alone may read, and its line among those that the nodes know.
make() { # FILE OWNER NAME ARGUMENTS…
  local file=$1 owner=$2
  shift 2
  [ ! -f "$file" ] || return 0
  # What an earlier run has begun and not ended, neither file nor line, is made anew.
  rm -f "$file.new" "$tokens.new"
  {
    # Nodes take no file in which a name is twice.
    if [ -f "$tokens" ]; then grep -vF "{\"name\":\"$1\"," "$tokens" || true; fi
    bitacora token "$@" --out "$file.new"
  } > "$tokens.new"
  chown "$owner:$owner" "$file.new"
  chmod 0444 "$tokens.new"
  mv -f "$tokens.new" "$tokens"
  mv -f "$file.new" "$file"
}

if [ $# -gt 0 ]; then
  case $1 in
    members | prometheus | everything) echo "The name $1 is the deployment's own" >&2 && exit 2 ;;
  esac
  rm -f /tmp/token
  make /tmp/token 0 "$@"
  cat /tmp/token
  exit
fi
make /tokens/member.token "$node" members --scopes member
# Any scope opens /metrics. This one opens no key that anybody uses.
make /secrets/prometheus/token "$prometheus" prometheus --scopes read --prefix prometheus-reads-no-keys
make /secrets/client/token "$node" everything --scopes read,write,admin,member
