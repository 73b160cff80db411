#!/usr/bin/env bash
# Whether the broker answers, and the user that start.sh makes is there. LOCAL_PORT is a port without TLS.
#
# ApiVersions, asked by hand: Kafka's own tools start a Java machine each time, which costs a second of processor time. The answer must be to
# this request (1) and without error (0).
set -euo pipefail
[ -z "${SCRAM_FILE:-}" ] || [ -f /tmp/scram-user-is-there ]
exec 3<> "/dev/tcp/127.0.0.1/${LOCAL_PORT:-19092}"
printf '\0\0\0\012\0\022\0\0\0\0\0\001\377\377' >&3
head -c 10 <&3 | od -An -tx1 | grep -q '00 00 00 01 00 00'
