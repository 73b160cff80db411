#!/usr/bin/env bash
# Creates the topic that is Bitacora's log, or checks the one that exists. Run as often as you like.
set -euo pipefail
: "${BOOTSTRAP:?}" "${TOPIC:?}" "${PARTITIONS:?}" "${REPLICATION_FACTOR:=1}" "${MIN_INSYNC_REPLICAS:=1}"
bin=/opt/kafka/bin
# How to log in, where the brokers ask for it.
login=(${CLIENT_PROPERTIES:+--command-config "$CLIENT_PROPERTIES"})

# compact: the newest record of each key stays for ever, and nothing else has to.
# LogAppendTime: the broker's clock orders the writes, however the nodes' clocks differ.
# max.message.bytes: the largest value that a node accepts, with its key and the rest of the record, fits.
# segment.bytes, segment.ms: compaction leaves the newest segment alone. With the defaults (1 GiB, 7 days) that is up to
#   a gigabyte per partition of old values for every new node to read, and deleted values stay on disk for a week.
# delete.retention.ms: no tombstone may vanish before a node that was away for less than DELETE_RETENTION has seen it.
#   Keep it at or above the nodes' DELETE_RETENTION; Kafka's default is one day.
# min.insync.replicas: so many brokers have a write before it is acknowledged.
# min.compaction.lag.ms: how long a node has to append a write again behind a trimmer's tombstone that came too late.
configs=(
  cleanup.policy=compact
  message.timestamp.type=LogAppendTime
  max.message.bytes=2097152
  segment.bytes=134217728
  segment.ms=86400000
  delete.retention.ms=604800000
  "min.insync.replicas=$MIN_INSYNC_REPLICAS"
  min.compaction.lag.ms=3600000
)

# A broker answers a moment before it may host partitions, so early failures are tried again.
deadline=$((SECONDS + 60))
until message=$("$bin/kafka-topics.sh" --bootstrap-server "$BOOTSTRAP" "${login[@]}" --create --if-not-exists --topic "$TOPIC" \
  --partitions "$PARTITIONS" --replication-factor "$REPLICATION_FACTOR" "${configs[@]/#/--config=}" 2>&1); do
  if ((SECONDS >= deadline)); then
    echo "The topic $TOPIC could not be created: $message" >&2
    exit 1
  fi
  sleep 1
done

described=$("$bin/kafka-configs.sh" --bootstrap-server "$BOOTSTRAP" "${login[@]}" --describe --all --entity-type topics --entity-name "$TOPIC")
config() { sed -n "s/^ *${1//./\\.}=\([^ ]*\) .*/\1/p" <<<"$described"; }

policy=$(config cleanup.policy)
if [ "$policy" != compact ]; then
  cat >&2 <<END
The topic $TOPIC exists with cleanup.policy=$policy, so Kafka would throw away data that Bitacora needs.
Choose another one with KAFKA_TOPIC, or make this one compacted:
  docker compose exec kafka $bin/kafka-configs.sh --bootstrap-server $BOOTSTRAP \\
    --alter --entity-type topics --entity-name $TOPIC --add-config cleanup.policy=compact
END
  exit 1
fi
for setting in "${configs[@]}"; do
  actual=$(config "${setting%%=*}")
  [ "$actual" = "${setting#*=}" ] || echo "Note: $TOPIC has ${setting%%=*}=$actual; a new topic would get $setting" >&2
done
echo "The topic $TOPIC is compacted."
