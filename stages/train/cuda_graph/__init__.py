"""Training steps compiled and replayed as CUDA graphs. Light: no imports."""
