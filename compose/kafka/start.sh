#!/usr/bin/env bash
# Starts the broker as the image's own start script does, also where that would fail.
set -euo pipefail
data=/var/lib/kafka/data

# The image's script writes over these files, and fails where it was built from read-only sources.
chmod -f u+w /opt/kafka/config/* /etc/kafka/docker/* || true

# A user that clients log in as, where there is SCRAM_FILE: its password, as kafka-configs.sh takes it. Users are kept by the
# running broker, so it is told each time, at a port that is only reached from here; a folder that was formatted without the user
# serves as well.
rm -f /tmp/scram-user-is-there
make_user() {
  until message=$(KAFKA_HEAP_OPTS=-Xmx128m /opt/kafka/bin/kafka-configs.sh --bootstrap-server "127.0.0.1:$LOCAL_PORT" --alter --entity-type users \
    --entity-name "$SCRAM_USER" --add-config-file "$SCRAM_FILE" 2>&1); do
    # Its errors tell the password.
    echo "The user $SCRAM_USER can't be made yet: $(tail -n 1 <<<"$message" | sed 's/password=.*/password=…/')" >&2
    sleep 1
  done
  touch /tmp/scram-user-is-there
}
[ -z "${SCRAM_FILE:-}" ] || make_user &

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
