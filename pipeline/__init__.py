"""Pure inspection: bytes and tensors in, verdicts out. Knows no Kafka, no Redis, no web."""
