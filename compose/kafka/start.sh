#!/usr/bin/env bash
# Starts the broker as the image's own start script does, also where that would fail.
set -euo pipefail
data=/var/lib/kafka/data

# The image's script writes over these files, and fails where it was built from read-only sources.
chmod -f u+w /opt/kafka/config/* /etc/kafka/docker/* || true

if [ ! -f "$data/meta.properties" ]; then
  exec /etc/kafka/docker/run
fi

# The volume is from an earlier container. Not every build of the image goes on when it can't format it again.
CLUSTER_ID=$(sed -n 's/^cluster\.id=//p' "$data/meta.properties")
export CLUSTER_ID
message=$(/opt/kafka/bin/kafka-run-class.sh kafka.docker.KafkaDockerWrapper setup --default-configs-dir /etc/kafka/docker \
  --mounted-configs-dir /mnt/shared/config --final-configs-dir /opt/kafka/config 2>&1) \
  || grep -qi 'already formatted' <<<"$message" || { echo "$message" >&2; exit 1; }
exec /opt/kafka/bin/kafka-server-start.sh /opt/kafka/config/server.properties
