#!/usr/bin/env bash
# Who may do what with a line's topics: one Kafka user for each kind of process, each with the least that it needs.
#
#   BOOTSTRAP=kafka-1.plant.example:9093 COMMAND_CONFIG=admin.properties bash deploy/kafka/acls.sh
#
# PREFIX and GROUP are [kafka] prefix and group of line.toml; USERS is what the users' names begin with. Brokers have an
# authorizer and allow.everyone.if.no.acl.found=false. Commands only add: what is there stays.
set -euo pipefail

bootstrap=${BOOTSTRAP:?the address of a broker, HOST:PORT}
prefix=${PREFIX:-goldline}
group=${GROUP:-goldline}
users=${USERS:-goldline}
tool=${KAFKA_ACLS:-kafka-acls.sh}

permit() { # ROLE, then what kafka-acls.sh takes
  local role=$1
  shift
  "$tool" --bootstrap-server "$bootstrap" ${COMMAND_CONFIG:+--command-config "$COMMAND_CONFIG"} \
    --add --allow-principal "User:$users-$role" "$@"
}

# goldline topics create, goldline topics check.
permit admin --operation Create --operation Describe --operation DescribeConfigs \
  --topic "$prefix." --resource-pattern-type prefixed

# goldline camera. Whoever may write frames can have the line inspect what it likes: one user for each camera is better.
permit camera --operation Write --topic "$prefix.frames"

# goldline worker. It reads results to know what was answered, drift to learn of accepted baselines, feedback for the
# pool; it looks at the topics' settings before it starts.
permit worker --operation Read --topic "$prefix.frames" --topic "$prefix.results" --topic "$prefix.drift" \
  --topic "$prefix.feedback" --group "$group" --group "$group.pool"
permit worker --operation Write --topic "$prefix.results" --topic "$prefix.heatmaps" --topic "$prefix.dead-letters" \
  --topic "$prefix.shadow" --topic "$prefix.drift"
permit worker --operation DescribeConfigs --topic "$prefix." --resource-pattern-type prefixed

# goldline gate. With a trigger it needs no frames.
permit gate --operation Read --topic "$prefix.results" --topic "$prefix.frames"

# goldline feedback, and a later inspection of your own: it can have parts removed from the pool, nothing else.
permit feedback --operation Write --topic "$prefix.feedback"

# goldline refit. It learns from the pool on the disk; of the topics it reads how a version on trial did.
permit refit --operation Read --topic "$prefix.shadow"

# A person on call: goldline results, dead-letters, drift, audit, models compare; replays, and accepted baselines.
permit operator --operation Read --operation DescribeConfigs --topic "$prefix." --resource-pattern-type prefixed
permit operator --operation Write --topic "$prefix.frames" --topic "$prefix.drift"
permit operator --operation Describe --group "$group" --group "$group.pool"

# What scales workers by their lag (KEDA), and what exports lag.
permit scaler --operation Describe --topic "$prefix.frames" --group "$group"
