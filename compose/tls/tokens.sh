#!/usr/bin/env bash
# Makes the tokens of tls.yaml, unless they are there. With arguments, as `bitacora token` takes them, makes one more and prints
# it; another one of that name is good for nothing from then on.
set -euo pipefail
umask 077

tokens=/tokens/tokens
# The users that nodes and Prometheus run as.
node=10001 prometheus=65534
# The tokens of the deployment itself, and whether one of a user is made, which may have none of these names.
own_names=" members prometheus everything " is_users=

# A token in a file that its owner alone may read, and its line among those that the nodes know.
make() { # FILE OWNER ARGUMENTS…
  local file=$1 owner=$2 line name
  shift 2
  # What an earlier run has begun and not ended, neither file nor line, is made anew.
  rm -f "$file.new" "$tokens.new"
  line=$(bitacora token --out "$file.new" "$@")
  # The line begins with the name, wherever that was among the arguments. No character of a name is escaped in JSON.
  name=${line#'{"name":"'}
  name=${name%%'"'*}
  if [ "$line" = "${line#'{"name":"'}" ] || [ ! -f "$file.new" ]; then
    # `bitacora token --help` makes none.
    printf '%s\n' "$line"
    return 0
  fi
  if [ -n "$is_users" ] && [ "$own_names" != "${own_names/ $name /}" ]; then
    rm -f "$file.new"
    echo "The name $name is the deployment's own" >&2
    return 2
  fi
  {
    # Nodes take no file in which a name is twice.
    if [ -f "$tokens" ]; then grep -vF "{\"name\":\"$name\"," "$tokens" || true; fi
    printf '%s\n' "$line"
  } > "$tokens.new"
  chown "$owner:$owner" "$file.new"
  chmod 0444 "$tokens.new"
  mv -f "$tokens.new" "$tokens"
  mv -f "$file.new" "$file"
}

# One run at a time: each writes the whole file of tokens, and would lose a line that another one adds meanwhile.
exec 9< "${tokens%/*}"
flock 9

if [ $# -gt 0 ]; then
  rm -f /tmp/token
  is_users=yes
  make /tmp/token 0 "$@"
  if [ -f /tmp/token ]; then cat /tmp/token; fi
  exit
fi
[ -f /tokens/member.token ] || make /tokens/member.token "$node" members --scopes member
# Any scope opens /metrics. This one opens no key that anybody uses.
[ -f /secrets/prometheus/token ] ||
  make /secrets/prometheus/token "$prometheus" prometheus --scopes read --prefix prometheus-reads-no-keys
[ -f /secrets/client/token ] || make /secrets/client/token "$node" everything --scopes read,write,admin,member
