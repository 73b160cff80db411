#!/usr/bin/env bash
# Makes the authority, certificates and passwords of tls.yaml, each into the volume of who needs it. What is there stays; certificates that
# would run out within 30 days are replaced, and with the argument `renew` all of them.
set -euo pipefail
umask 077

authority=/authority
certificate_days=397
authority_days=3650
spare_seconds=$((30 * 24 * 60 * 60))

# The users that the others run as.
node=10001 kafka=1000 haproxy=99 prometheus=65534

case ${1-} in
  '') renew= ;;
  renew) renew=yes ;;
  *) echo "Usage: certificates.sh [renew]" >&2 && exit 2 ;;
esac

# Stdin becomes the file, at once, for its owner alone to read.
put() { # FILE OWNER [MODE]
  # One that an earlier run has left may be another's already.
  rm -f "$1.new"
  cat > "$1.new"
  chmod "${3:-0400}" "$1.new"
  chown "$2:$2" "$1.new"
  mv -f "$1.new" "$1"
}

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256; }

if [ ! -f "$authority/ca.pem" ]; then
  key > "$authority/ca.key"
  openssl req -x509 -new -key "$authority/ca.key" -days "$authority_days" -subj '/CN=Bitacora Compose authority' \
    -addext 'basicConstraints=critical,CA:TRUE,pathlen:0' -addext 'keyUsage=critical,keyCertSign,cRLSign' > "$authority/ca.new"
  mv "$authority/ca.new" "$authority/ca.pem"
  echo "There is a new authority."
fi

# Whether the certificate is of this authority, and will still be good when it is asked for next.
is_good() {
  [ -f "$1" ] && openssl verify -CAfile "$authority/ca.pem" -attime $(($(date +%s) + spare_seconds)) "$1" > /dev/null 2>&1
}

# The authority's certificate, and a key with a certificate for these names.
certificate() { # FOLDER OWNER NAMES
  local folder=/secrets/$1 owner=$2 names=$3 made=/tmp/$1
  put "$folder/ca.pem" "$owner" 0444 < "$authority/ca.pem"
  if [ -z "$renew" ] && is_good "$folder/certificate.pem"; then return; fi
  key > "$made.key"
  openssl req -new -key "$made.key" -subj "/CN=$1" > "$made.request"
  # For servers and for clients: a node shows it as both where callers must show one.
  openssl x509 -req -in "$made.request" -CA "$authority/ca.pem" -CAkey "$authority/ca.key" -set_serial "0x$(openssl rand -hex 16)" \
    -days "$certificate_days" -out "$made.pem" 2> "$made.log" -extfile <(
    echo "subjectAltName=$names"
    echo 'basicConstraints=critical,CA:FALSE'
    echo 'keyUsage=critical,digitalSignature'
    echo 'extendedKeyUsage=serverAuth,clientAuth'
    echo 'authorityKeyIdentifier=keyid'
  ) || { cat "$made.log" >&2; exit 1; }
  case $1 in
    # They take both as one file.
    kafka | haproxy) cat "$made.key" "$made.pem" | put "$folder/keystore.pem" "$owner" ;;
    *) put "$folder/key.pem" "$owner" < "$made.key" ;;
  esac
  put "$folder/certificate.pem" "$owner" 0444 < "$made.pem"
  echo "$1 has a new certificate."
}

here=DNS:localhost,IP:127.0.0.1
for number in 1 2 3; do
  # `nodes` is the name under which the balancer and Prometheus find every node.
  certificate "node-$number" "$node" "DNS:node-$number,DNS:nodes,$here"
done
certificate kafka "$kafka" "DNS:kafka,$here"
certificate haproxy "$haproxy" "DNS:haproxy,$here"
certificate prometheus "$prometheus" "DNS:prometheus,$here"
put /secrets/topic/ca.pem "$kafka" 0444 < "$authority/ca.pem"
put /secrets/client/ca.pem "$node" 0444 < "$authority/ca.pem"

[ -s "$authority/kafka.password" ] || openssl rand -hex 32 > "$authority/kafka.password"
[ -s "$authority/zookeeper.login" ] || echo "bitacora:$(openssl rand -hex 32)" > "$authority/zookeeper.login"
password=$(< "$authority/kafka.password")
for number in 1 2 3; do
  put "/secrets/node-$number/kafka.password" "$node" < "$authority/kafka.password"
  put "/secrets/node-$number/zookeeper.login" "$node" < "$authority/zookeeper.login"
done
put /secrets/kafka/scram.properties "$kafka" <<< "SCRAM-SHA-512=password=$password"
put /secrets/topic/client.properties "$kafka" <<END
security.protocol=SASL_SSL
ssl.truststore.type=PEM
ssl.truststore.location=/secrets/ca.pem
sasl.mechanism=SCRAM-SHA-512
sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username="bitacora" password="$password";
END
