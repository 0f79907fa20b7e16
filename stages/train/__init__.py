"""Adapter training: latents or prepared audio in, a trained adapter out. Light: no imports.

Modules from bottom to top; each imports only from its own line or from lines above it.

    stage  rng  determinism                      parameters of the stage, random draws, deterministic kernels
    job                                          one call of the stage: inputs, parameters, workspace, device
    dataset/                                     which clips a step sees, and the batch made of them
    model/                                       frozen base with adapter, loss, evaluation on fixed noise
    optim/                                       learning rate, update rules, moving average
    record/                                      metrics and checkpoints
    training                                     state between two steps, and one eager step
    cuda_graph/                                  the same step compiled and replayed as a CUDA graph
    loop  setup                                  step after step; a training before its first step
    forecast/  output/                           memory estimate before loading; adapter files, tables, config.json
    run                                          entry point of the stage

One clip's way: run -> dataset.examples -> dataset.sampler (which clips) -> dataset.clips (latents) ->
dataset.collate (crop, noise, timestep, masks) -> loop -> training -> model.network (forward, loss) -> optim.optimizer.
"""
