"""Where frames meet Kafka: the worker, the camera, the gate and the command line."""
