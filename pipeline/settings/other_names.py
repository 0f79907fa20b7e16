"""Short names of fields, and what other trainers call them. Light: standard library only."""

from __future__ import annotations

from collections.abc import Mapping

ALIASES: Mapping[str, tuple[str, ...]] = {
    "audio_data_url": ("dataset", "data"),
    "number_of_steps": ("steps",),
    "learning_rate": ("lr",),
}
"""Further names of a field, in flags and recipes."""

_SAME = {
    "rank": ("r", "dim", "network_dim", "lora_rank", "lora_dim"),
    "alpha": ("network_alpha", "lora_alpha"),
    "adapter_dropout": ("dropout", "lora_dropout", "network_dropout"),
    "adapter_type": ("type", "kind", "adapter", "network_module", "lora_type"),
    "number_of_steps": ("step", "num_steps", "max_steps", "max_train_steps", "train_steps", "iterations", "iters"),
    "learning_rate": ("unet_lr", "rate"),
    "batch_size": ("batch", "bs", "train_batch_size"),
    "gradient_accumulation": ("gradient_accumulation_steps", "grad_accum", "accumulate_grad_batches"),
    "gradient_clip": ("max_grad_norm", "clip_grad_norm", "gradient_clip_val"),
    "gradient_checkpointing": ("checkpointing",),
    "schedule": ("scheduler", "lr_scheduler"),
    "warmup_steps": ("warmup", "lr_warmup_steps"),
    "optimizer": ("optimizer_type", "optim"),
    "base_precision": ("precision", "mixed_precision", "dtype"),
    "base_quantization": ("quantization", "quantize"),
    "model": ("base", "base_model", "pretrained", "pretrained_name", "pretrained_model_name_or_path", "model_name"),
    "weights": ("pretrained_ckpt_path", "ckpt", "checkpoint", "checkpoint_dir", "model_dir", "model_path"),
    "lora_checkpoint_url": ("lora_checkpoint", "lora_path", "network_weights", "init_lora", "lora"),
    "output": ("out", "output_dir", "save_dir", "output_folder"),
    "name": ("output_name", "run_name", "out_name"),
    "store": ("cache", "cache_dir", "artifacts"),
    "duration": ("seconds", "length", "max_duration", "crop", "sample_size"),
    "trigger_phrase": ("trigger", "trigger_word", "instance_prompt"),
    "captions": ("metadata", "caption_file"),
    "pre_encode": ("cache_latents", "pre_encoded"),
    "workers": ("num_workers", "jobs"),
    "checkpoint_every": ("save_every_n_steps", "checkpointing_steps"),
    "log_every": ("logging_steps", "log_interval"),
}
_ADVICE = {
    "epochs": "--steps counts batches: one epoch is the number of clips, divided by --batch-size.",
    "resume": "A stopped training goes on by itself: type the same command again.",
    "gpu": "Say --device cuda, or --device cuda:1 for the second GPU.",
    "cuda": "Say --device cuda.",
    "cpu": "Say --device cpu.",
    "mps": "Say --device mps.",
    "config": "A file with fields is given by --recipe FILE.",
    "help_all": "`sa3-trainer run --help-all` lists every field.",
}
_LIKE: Mapping[str, tuple[str, ...]] = {
    "epochs": ("epoch", "num_epochs", "max_epochs", "num_train_epochs", "max_train_epochs"),
    "resume": ("resume_from_checkpoint", "continue"),
    "gpu": ("gpus", "gpu_id"),
    "config": ("config_file",),
}

MEANT = {other: field for field, others in _SAME.items() for other in others}
"""The field that a name of other trainers means."""
ADVICE = _ADVICE | {other: _ADVICE[name] for name, others in _LIKE.items() for other in others}
"""What to do for a name that no field has."""


def flag(name: str) -> str:
    """`--number-of-steps` of `number_of_steps`."""
    return f"--{name.replace('_', '-')}"


def canonical(name: str) -> str:
    """The field of a short name, or of one with hyphens; any other name as it is."""
    written = name.replace("-", "_")
    return next((field for field, others in ALIASES.items() if written in others), written)


def hint(name: str, known: Mapping[str, object] | frozenset[str]) -> str:
    """What to type instead of a flag that does not exist; empty where that is not known.

    Args:
        known: names of the fields that the command has.
    """
    written = name.removeprefix("no_")
    if written in ADVICE:
        return ADVICE[written]
    field = MEANT.get(written, canonical(written))
    return f"It is called {flag(field)} here." if field in known and field != name else ""
