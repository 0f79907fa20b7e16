"""What a training records: metrics, checkpoints, speed. Light: no imports."""
